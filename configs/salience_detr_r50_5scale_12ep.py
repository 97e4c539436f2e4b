"""Salience DETR, ResNet-50, 4 levels of strides 4 to 32 ("5-scale"), 12 epochs of COCO."""

from .models.backbones import use_resnet
from .salience_detr_r50_4scale_12ep import dataloader, lr_multiplier, model, optimizer, train

use_resnet(model, 50, out_features=("res2", "res3", "res4", "res5"))
model.neck.num_extra_levels = 0
model.encoder.background_embedding.size = 500
train.output_dir = "./output/salience_detr_r50_5scale_12ep"
