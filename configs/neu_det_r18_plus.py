"""NEU-DET as neu_det_r18, but better: neu_det_r18_plus_stage1, then these 8 epochs by two seeds.

The weights are the mean of all three trainings, which are as long as that of neu_det_r18 together.
"""

from .common.augmentation import stretched_images
from .common.close_up import end_with
from .common.schedule import flat_cosine_schedule
from .neu_det_r18_plus_stage1 import dataloader, model, optimizer, train

train.init_checkpoint = "./output/neu_det_r18_plus_stage1/model_final.pth"

# The rate rises again, and falls in the second half.
optimizer.lr = 3e-4
train.epochs = 8
train.max_iter = 1260  # all of the 1,260 images eight times, in batches of 8
lr_multiplier = flat_cosine_schedule(max_iter=train.max_iter, flat=0.5, warmup=100, end=0.01)

# Whole images in all of it, whose defects get a little wider or higher.
train.close_up = 1.0
end_with(dataloader, stretched_images([224, 240, 256, 272]))

train.output_dir = "./output/neu_det_r18_plus"
