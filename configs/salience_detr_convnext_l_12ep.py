"""Salience DETR, ConvNeXt-L (ImageNet-1K), 12 epochs of COCO: 54.2 AP in the paper's code."""

from .models.backbones import use_convnext
from .salience_detr_r50_4scale_12ep import dataloader, lr_multiplier, model, optimizer, train

use_convnext(model, "large")
train.init_checkpoint = "torchvision://ConvNeXt_Large_Weights.IMAGENET1K_V1"
train.output_dir = "./output/salience_detr_convnext_l_12ep"
