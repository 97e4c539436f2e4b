"""Salience DETR, ResNet-50, 12 epochs of COCO, with the changes of docs/beyond_the_paper.md."""

from detectron2.config import LazyCall as L

from salience_detr.layers.losses import MatchabilityAwareLoss

from .salience_detr_r50_4scale_12ep import dataloader, lr_multiplier, model, optimizer, train

model.criterion.class_loss = L(MatchabilityAwareLoss)(gamma=1.5)

train.output_dir = "./output/salience_detr_plus_r50_4scale_12ep"
