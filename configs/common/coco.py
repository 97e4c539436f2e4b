"""COCO 2017 with the augmentation of the published recipe (paper, section 4.1)."""

from detectron2.config import LazyCall as L
from detectron2.data import build_detection_test_loader
from detectron2.data import transforms as T
from detectron2.evaluation import COCOEvaluator
from omegaconf import OmegaConf

from salience_detr.data import DetectionMapper, ResizeShortestEdge, build_train_loader, load_dataset

TRAIN_SIDES = list(range(480, 801, 32))
MAX_SIDE = 1333

# 12 epochs of them in batches of 16 are 12 * 7,392 = 88,704 iterations.
TRAIN_IMAGES = 118_287

dataloader = OmegaConf.create()

dataloader.train = L(build_train_loader)(
    dataset=L(load_dataset)(names="coco_2017_train", is_train=True),
    mapper=L(DetectionMapper)(
        is_train=True,
        augmentations=[
            L(T.RandomFlip)(),
            # Half of the time a window of a smaller picture is cut out, so that objects vary more in size.
            L(T.RandomApply)(
                tfm_or_aug=L(T.AugmentationList)(
                    augs=[
                        L(ResizeShortestEdge)(short_edge_length=[400, 500, 600], sample_style="choice"),
                        L(T.RandomCrop)(crop_type="absolute_range", crop_size=(384, 600)),
                    ]
                ),
                prob=0.5,
            ),
            L(ResizeShortestEdge)(short_edge_length=TRAIN_SIDES, max_size=MAX_SIDE, sample_style="choice"),
        ],
        image_format="${model.input_format}",
    ),
    total_batch_size=16,
    num_workers=4,
    seed="${train.seed}",
)

dataloader.test = L(build_detection_test_loader)(
    dataset=L(load_dataset)(names="coco_2017_val"),
    mapper=L(DetectionMapper)(
        is_train=False,
        augmentations=[L(ResizeShortestEdge)(short_edge_length=800, max_size=MAX_SIDE)],
        image_format="${model.input_format}",
    ),
    num_workers=4,
)

dataloader.evaluator = L(COCOEvaluator)(
    dataset_name="${..test.dataset.names}",
    tasks=("bbox",),
    output_dir="${train.output_dir}/inference",
)
