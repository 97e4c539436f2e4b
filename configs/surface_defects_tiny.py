"""Small Salience DETR on generated images of metal with six kinds of defects, on two CPU cores."""

from detectron2.config import LazyCall as L

from salience_detr.data import RandomFlip, ResizeShortestEdge

from .common.coco import dataloader
from .common.optimizer import optimizer
from .common.schedule import step_schedule
from .common.train import train
from .models.salience_detr_tiny import model

for _loader, _split in ((dataloader.train, "train"), (dataloader.test, "val")):
    _loader.dataset.names = f"surface_defects_{_split}"
    _loader.num_workers = 0
dataloader.train.mapper.augmentations = [
    L(RandomFlip)(),
    L(RandomFlip)(horizontal=False, vertical=True),
]
dataloader.test.mapper.augmentations = [L(ResizeShortestEdge)(short_edge_length=320, max_size=533)]
dataloader.train.total_batch_size = 8

# Trained from scratch: the backbone learns at the full rate.
optimizer.lr = 4e-4
optimizer.params.backbone_lr_factor = 1.0

# 4,000 images: 7 epochs of 500 iterations, the last one at a tenth of the rate.
EPOCH = 4000 // dataloader.train.total_batch_size
train.epochs = 7
train.max_iter = train.epochs * EPOCH
train.eval_period = EPOCH
train.checkpointer.period = EPOCH
lr_multiplier = step_schedule(
    max_iter=train.max_iter, decay_at=(train.epochs - 1) * EPOCH, warmup=200
)

train.output_dir = "./output/surface_defects_tiny"
