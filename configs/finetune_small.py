"""Few images of your own and no GPU: the small model, fine-tuned."""

from .common.augmentation import whole_images
from .common.close_up import end_with
from .common.schedule import cosine_schedule
from .neu_det_r18 import EPOCH, dataloader, model, optimizer, train

# The shipped weights; only the rows of classes that they do not know start afresh.
train.init_checkpoint = "surface_defects_tiny"

# A model that was trained briefly finds many objects twice.
model.nms_iou_threshold = 0.5
model.nms_soft = True

# 50 epochs, whatever the number of images: the rate rises for 50 iterations, then falls smoothly.
train.epochs = 50
train.max_iter = train.epochs * EPOCH
train.eval_period = train.checkpointer.period = 5 * EPOCH
optimizer.lr = 8e-4
# First windows of enlarged images, at last whole images, as they are in evaluation.
train.close_up = 0.4
end_with(dataloader, whole_images([224, 256, 288], max_side=480))
lr_multiplier = cosine_schedule(max_iter=train.max_iter, warmup=50, end=0.01)

train.output_dir = "./output/finetune_small"
