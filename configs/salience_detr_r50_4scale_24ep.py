"""Salience DETR, ResNet-50, 4 levels, 24 epochs of COCO: 51.2 AP in the paper's code."""

from .common.schedule import step_schedule
from .salience_detr_r50_4scale_12ep import EPOCH, dataloader, model, optimizer, train

train.epochs = 24
train.max_iter = train.epochs * EPOCH
train.output_dir = "./output/salience_detr_r50_4scale_24ep"
lr_multiplier = step_schedule(max_iter=train.max_iter, decay_at=20 * EPOCH)
