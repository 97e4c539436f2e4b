"""Salience DETR, ConvNeXt-S (ImageNet-1K), 12 epochs of COCO: not in the paper."""

from .models.backbones import use_convnext
from .salience_detr_r50_4scale_12ep import dataloader, lr_multiplier, model, optimizer, train

use_convnext(model, "small")
train.init_checkpoint = "torchvision://ConvNeXt_Small_Weights.IMAGENET1K_V1"
train.output_dir = "./output/salience_detr_convnext_s_12ep"
