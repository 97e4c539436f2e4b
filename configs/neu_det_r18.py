"""Six kinds of defects on photographs of hot-rolled steel (NEU-DET), from scratch on the CPU."""

import os

from detectron2.config import LazyCall as L
from detectron2.data import transforms as T

from salience_detr.data import RandomFlip, ResizeShortestEdge

from .common.augmentation import large_scale_jitter
from .common.schedule import step_schedule
from .surface_defects_tiny import dataloader, model, optimizer, train

ROOT = os.environ.get("NEU_DET", "datasets/neu_det")
for _loader, _split in ((dataloader.train, "train"), (dataloader.test, "val")):
    _loader.dataset.names = f"neu_det_{_split}"
    _loader.dataset.json_file = f"{ROOT}/annotations/instances_{_split}.json"
    _loader.dataset.image_root = f"{ROOT}/images/{_split}"

# Large defects of vague outline: more tokens are salient than with small ones on plain metal.
model.salience_filter.level_ratios = [0.5, 0.8, 1.0]

# Most windows show a part of an image: the images are few for a training from scratch.
SIDE = 256
dataloader.train.mapper.augmentations = [
    L(RandomFlip)(horizontal=False, vertical=True),
    L(T.RandomBrightness)(intensity_min=0.8, intensity_max=1.2),
    L(T.RandomContrast)(intensity_min=0.8, intensity_max=1.2),
    *large_scale_jitter(SIDE, min_scale=0.75, max_scale=1.4),
]
dataloader.test.mapper.augmentations = [L(ResizeShortestEdge)(short_edge_length=SIDE, max_size=427)]

# 1,260 images: 66 epochs of 157 iterations, the last nine at a tenth of the rate.
EPOCH = 1260 // dataloader.train.total_batch_size
train.epochs = 66
train.max_iter = train.epochs * EPOCH
train.eval_period = train.checkpointer.period = 6 * EPOCH
lr_multiplier = step_schedule(
    max_iter=train.max_iter, decay_at=(train.epochs - 9) * EPOCH, warmup=200
)

train.amp.enabled = train.ema.enabled = True
train.output_dir = "./output/neu_det_r18"
