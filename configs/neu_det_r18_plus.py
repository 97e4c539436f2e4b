"""NEU-DET as neu_det_r18, better in fewer epochs, with changes of docs/beyond_the_paper.md."""

from detectron2.config import LazyCall as L

from salience_detr.layers.losses import MatchabilityAwareLoss

from .common.schedule import step_schedule
from .neu_det_r18 import EPOCH, dataloader, model, optimizer, train

# The weights of the generated defects, instead of random ones.
train.init_checkpoint = "surface_defects_tiny"

model.criterion.class_loss = L(MatchabilityAwareLoss)(gamma=1.5)
model.nms_iou_threshold = 0.7
model.nms_box_voting = True

# 50 epochs, the last seven at a tenth of the rate.
train.epochs = 50
train.max_iter = train.epochs * EPOCH
lr_multiplier = step_schedule(
    max_iter=train.max_iter, decay_at=(train.epochs - 7) * EPOCH, warmup=200
)

train.output_dir = "./output/neu_det_r18_plus"
