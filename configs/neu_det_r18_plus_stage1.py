"""First 50 epochs of neu_det_r18_plus, with changes of docs/beyond_the_paper.md."""

from detectron2.config import LazyCall as L

from salience_detr.layers.losses import MatchabilityAwareLoss

from .common.augmentation import whole_images
from .common.close_up import end_with
from .common.schedule import flat_cosine_schedule
from .neu_det_r18 import EPOCH, dataloader, model, optimizer, train

# The weights of the generated defects, instead of random ones.
train.init_checkpoint = "surface_defects_tiny"

model.criterion.class_loss = L(MatchabilityAwareLoss)(gamma=1.5)
model.nms_iou_threshold = 0.5
model.nms_soft = True

# In the last 20 epochs the images are whole, as in evaluation, and the rate falls.
train.epochs = 50
train.close_up = 0.4
train.max_iter = train.epochs * EPOCH
lr_multiplier = flat_cosine_schedule(
    max_iter=train.max_iter, flat=1 - train.close_up, warmup=200, end=0.01
)
end_with(dataloader, whole_images([224, 256, 288], max_side=480))

train.output_dir = "./output/neu_det_r18_plus_stage1"
