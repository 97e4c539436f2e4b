"""Salience DETR, ResNet-101, 12 epochs of COCO: not in the paper."""

from .models.backbones import use_resnet
from .salience_detr_r50_4scale_12ep import dataloader, lr_multiplier, model, optimizer, train

use_resnet(model, 101)
train.init_checkpoint = "torchvision://ResNet101_Weights.IMAGENET1K_V2"
train.output_dir = "./output/salience_detr_r101_4scale_12ep"
