"""First five epochs of surface_defects_tiny_plus, with changes of docs/beyond_the_paper.md."""

from detectron2.config import LazyCall as L

from salience_detr.layers.losses import MatchabilityAwareLoss

from .common.schedule import flat_cosine_schedule
from .surface_defects_tiny import EPOCH, dataloader, model, optimizer, train

# The weights of the photographs of NEU-DET, instead of random ones.
train.init_checkpoint = "neu_det_r18"

model.criterion.class_loss = L(MatchabilityAwareLoss)(gamma=1.5)
train.ema.enabled = True

train.epochs = 5
train.max_iter = train.epochs * EPOCH
lr_multiplier = flat_cosine_schedule(max_iter=train.max_iter, flat=0.4, warmup=200, end=0.01)

train.output_dir = "./output/surface_defects_tiny_plus_stage1"
