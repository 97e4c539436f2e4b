"""Generated defects, but better: five epochs of surface_defects_tiny_plus_stage1, then two."""

from .common.schedule import flat_cosine_schedule
from .surface_defects_tiny_plus_stage1 import EPOCH, dataloader, model, optimizer, train

train.init_checkpoint = "./output/surface_defects_tiny_plus_stage1/model_final.pth"

# The rate rises again, and falls in the second half.
optimizer.lr = 3e-4
train.epochs = 2
train.max_iter = train.epochs * EPOCH
lr_multiplier = flat_cosine_schedule(max_iter=train.max_iter, flat=0.5, warmup=50, end=0.01)

train.output_dir = "./output/surface_defects_tiny_plus"
