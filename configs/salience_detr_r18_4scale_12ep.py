"""Salience DETR, ResNet-18, 12 epochs of COCO: not in the paper."""

from .models.backbones import use_resnet
from .salience_detr_r50_4scale_12ep import dataloader, lr_multiplier, model, optimizer, train

use_resnet(model, 18)
train.init_checkpoint = "torchvision://ResNet18_Weights.IMAGENET1K_V1"
train.output_dir = "./output/salience_detr_r18_4scale_12ep"
