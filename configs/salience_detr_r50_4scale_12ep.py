"""Salience DETR, ResNet-50, 4 levels, 12 epochs of COCO: 50.0 AP in the paper's code."""

from .common.coco import TRAIN_IMAGES, dataloader
from .common.optimizer import optimizer
from .common.schedule import step_schedule
from .common.train import train
from .models.salience_detr_r50 import model

# V2 weights: those of V1 cost about 1 AP.
train.init_checkpoint = "torchvision://ResNet50_Weights.IMAGENET1K_V2"
train.output_dir = "./output/salience_detr_r50_4scale_12ep"

EPOCH = TRAIN_IMAGES // dataloader.train.total_batch_size
train.epochs = 12
train.max_iter = train.epochs * EPOCH
train.eval_period = EPOCH
train.checkpointer.period = EPOCH

# A tenth of the rate in the last two epochs.
lr_multiplier = step_schedule(max_iter=train.max_iter, decay_at=10 * EPOCH)
