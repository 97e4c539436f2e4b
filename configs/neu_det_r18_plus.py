"""NEU-DET as neu_det_r18, with the changes of docs/beyond_the_paper.md."""

from detectron2.config import LazyCall as L

from salience_detr.layers.losses import MatchabilityAwareLoss

from .neu_det_r18 import dataloader, lr_multiplier, model, optimizer, train

model.criterion.class_loss = L(MatchabilityAwareLoss)(gamma=1.5)

train.output_dir = "./output/neu_det_r18_plus"
