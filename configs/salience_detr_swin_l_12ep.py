"""Salience DETR, Swin-L (ImageNet-22K, window 7), 12 epochs of COCO: 56.5 AP."""

from .models.backbones import use_swin
from .salience_detr_r50_4scale_12ep import dataloader, lr_multiplier, model, optimizer, train

use_swin(model, "large")
train.init_checkpoint = "https://github.com/SwinTransformer/storage/releases/download/v1.0.0/swin_large_patch4_window7_224_22k.pth"
train.output_dir = "./output/salience_detr_swin_l_12ep"
