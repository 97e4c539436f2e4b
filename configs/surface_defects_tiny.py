"""A small Salience DETR for 320-pixel images that trains on two CPU cores: the same code, only other numbers."""

from detectron2.config import LazyCall as L
from detectron2.modeling.backbone.resnet import BasicBlock, BasicStem, ResNet

from salience_detr.data import RandomFlip, ResizeShortestEdge

from .common.coco import dataloader
from .common.optimizer import optimizer
from .common.schedule import step_schedule
from .common.train import train
from .models.salience_detr_r50 import model

TRAIN_IMAGES, EPOCHS = 4000, 7

# A thin ResNet-18, trained from scratch.
WIDTHS = [32, 64, 128, 256]
model.backbone.stem = L(BasicStem)(in_channels=3, out_channels=32, norm="BN")
model.backbone.stages = [
    L(ResNet.make_stage)(
        block_class=BasicBlock,
        num_blocks=2,
        stride_per_block=[first, 1],
        in_channels=before,
        out_channels=after,
        norm="BN",
    )
    for before, after, first in zip([32, *WIDTHS[:-1]], WIDTHS, [1, 2, 2, 2], strict=True)
]
model.backbone.freeze_at = 0
model.neck.in_channels = WIDTHS[1:]
model.neck.num_extra_levels = 0

# Three levels, of 40, 20 and 10 tokens a side.
model.num_classes, model.num_queries, model.embed_dim = 6, 60, 96
model.token_pyramid.num_levels = model.feature_fusion.num_levels = 3
model.salience_filter.level_ratios, model.salience_filter.layer_ratios = (
    [0.25, 0.5, 1.0],
    [1.0, 0.5],
)
model.salience_criterion.level_ranges = [(-1, 32), (32, 64), (64, 99999)]
model.encoder.layers = model.encoder.layers[:2]
model.decoder.layers = model.decoder.layers[:3]
for _layer in [*model.encoder.layers, *model.decoder.layers]:
    _layer.num_levels, _layer.ffn_dim = 3, 384
for _layer in model.encoder.layers:
    _layer.num_important = 100
model.feature_fusion.num_blocks = 1
model.denoising.denoising_queries = 30

for _loader, _split in ((dataloader.train, "train"), (dataloader.test, "val")):
    _loader.dataset.names = f"surface_defects_{_split}"
    _loader.num_workers = 0
dataloader.train.mapper.augmentations = [
    L(RandomFlip)(),
    L(RandomFlip)(horizontal=False, vertical=True),
]
dataloader.test.mapper.augmentations = [L(ResizeShortestEdge)(short_edge_length=320, max_size=533)]
dataloader.train.total_batch_size = 8

optimizer.lr, optimizer.params.backbone_lr_factor = 4e-4, 1.0
EPOCH = TRAIN_IMAGES // dataloader.train.total_batch_size
train.epochs = EPOCHS
train.max_iter = EPOCHS * EPOCH
train.eval_period = train.checkpointer.period = EPOCH
train.output_dir = "./output/surface_defects_tiny"
lr_multiplier = step_schedule(max_iter=train.max_iter, decay_at=(EPOCHS - 1) * EPOCH, warmup=200)
