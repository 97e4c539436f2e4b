"""Salience DETR, ConvNeXt-T (ImageNet-1K), 12 epochs of COCO: not in the paper."""

from .models.backbones import use_convnext
from .salience_detr_r50_4scale_12ep import dataloader, lr_multiplier, model, optimizer, train

use_convnext(model, "tiny")
train.init_checkpoint = "torchvision://ConvNeXt_Tiny_Weights.IMAGENET1K_V1"
train.output_dir = "./output/salience_detr_convnext_t_12ep"
