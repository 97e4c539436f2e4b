"""Salience DETR, FocalNet-B (ImageNet-1K, large field), 12 epochs of COCO: not in the paper."""

from .models.backbones import use_focalnet
from .salience_detr_r50_4scale_12ep import dataloader, lr_multiplier, model, optimizer, train

use_focalnet(model, "base_lrf")
train.init_checkpoint = (
    "https://github.com/microsoft/FocalNet/releases/download/v1.0.0/focalnet_base_lrf.pth"
)
train.output_dir = "./output/salience_detr_focalnet_b_12ep"
