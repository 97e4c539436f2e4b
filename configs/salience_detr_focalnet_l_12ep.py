"""Salience DETR, FocalNet-L (ImageNet-22K, 4 focal levels), 12 epochs of COCO: 57.3 AP."""

from .models.backbones import use_focalnet
from .salience_detr_r50_4scale_12ep import dataloader, lr_multiplier, model, optimizer, train

use_focalnet(model, "large_fl4")
train.init_checkpoint = (
    "https://github.com/microsoft/FocalNet/releases/download/v1.0.0/focalnet_large_lrf_384_fl4.pth"
)
train.output_dir = "./output/salience_detr_focalnet_l_12ep"
