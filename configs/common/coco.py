"""COCO 2017 with the augmentation of the published recipe (paper, section 4.1)."""

from detectron2.config import LazyCall as L
from detectron2.evaluation import COCOEvaluator
from omegaconf import OmegaConf

from salience_detr.data import (
    DetectionMapper,
    ResizeShortestEdge,
    build_test_loader,
    build_train_loader,
    load_dataset,
)

from .augmentation import MAX_SIDE, detr

# 12 epochs of them in batches of 16 are 12 * 7,392 = 88,704 iterations.
TRAIN_IMAGES = 118_287

dataloader = OmegaConf.create()

dataloader.train = L(build_train_loader)(
    dataset=L(load_dataset)(names="coco_2017_train", is_train=True),
    mapper=L(DetectionMapper)(
        is_train=True,
        augmentations=detr(),
        image_format="${model.input_format}",
        value_range="auto",
    ),
    total_batch_size=16,
    num_workers=4,
    seed="${train.seed}",
    aspect_ratio_grouping=True,
)

dataloader.test = L(build_test_loader)(
    dataset=L(load_dataset)(names="coco_2017_val"),
    mapper=L(DetectionMapper)(
        is_train=False,
        augmentations=[L(ResizeShortestEdge)(short_edge_length=800, max_size=MAX_SIDE)],
        image_format="${model.input_format}",
        value_range="${dataloader.train.mapper.value_range}",
    ),
    num_workers=4,
)

dataloader.evaluator = L(COCOEvaluator)(
    dataset_name="${..test.dataset.names}",
    tasks=("bbox",),
    output_dir="${train.output_dir}/inference",
)
