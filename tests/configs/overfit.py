"""The small model on a handful of real images, without augmentation."""

import os

from detectron2.config import LazyCall as L

from salience_detr.data import ResizeShortestEdge, register_coco_dataset

from ...configs.common.schedule import step_schedule
from ...configs.surface_defects_tiny import dataloader, model, optimizer, train

register_coco_dataset("overfit", os.environ["OVERFIT_JSON"], os.environ["OVERFIT_IMAGES"])
model.num_classes, model.num_queries = 80, 100
model.denoising.denoising_queries = 100
# Small objects in crowds need more of the fine level than defects on plain metal.
model.salience_filter.level_ratios = [0.6, 1.0, 1.0]
model.salience_criterion.level_ranges = [(-1, 48), (48, 96), (96, 99999)]

_resize = L(ResizeShortestEdge)(short_edge_length=256, max_size=416)
for _loader in (dataloader.train, dataloader.test):
    _loader.dataset.names = "overfit"
    _loader.mapper.augmentations = [_resize]
dataloader.train.total_batch_size = 4
optimizer.lr = 5e-4
train.epochs = 200
train.max_iter, train.eval_period, train.checkpointer.period = 800, 200, 0
lr_multiplier = step_schedule(max_iter=train.max_iter, decay_at=650, warmup=50)
