"""Salience DETR, Swin-B (ImageNet-22K), 12 epochs of COCO: not in the paper."""

from .models.backbones import use_swin
from .salience_detr_r50_4scale_12ep import dataloader, lr_multiplier, model, optimizer, train

use_swin(model, "base")
train.init_checkpoint = "https://github.com/SwinTransformer/storage/releases/download/v1.0.0/swin_base_patch4_window7_224_22k.pth"
train.output_dir = "./output/salience_detr_swin_b_12ep"
