"""A small Salience DETR for 320-pixel pictures that trains on two CPU cores: the same code, only other numbers."""

from detectron2.config import LazyCall as L
from detectron2.data import transforms as T
from detectron2.modeling.backbone.resnet import BasicBlock, BasicStem, ResNet

from .common.coco import dataloader
from .common.optimizer import optimizer
from .common.schedule import step_schedule
from .common.train import train
from .models.salience_detr_r50 import model

TRAIN_IMAGES, EPOCHS = 4000, 16

# A thin ResNet-18, trained from scratch.
WIDTHS = [32, 64, 128, 256]
model.backbone.stem = L(BasicStem)(in_channels=3, out_channels=32, norm="BN")
model.backbone.stages = [
    L(ResNet.make_stage)(
        block_class=BasicBlock, num_blocks=2, stride_per_block=[first, 1], in_channels=before, out_channels=after, norm="BN"
    )
    for before, after, first in zip([32, *WIDTHS], WIDTHS, [1, 2, 2, 2])
]
model.backbone.freeze_at = 0
model.neck.in_channels = WIDTHS[1:]
model.num_classes, model.num_queries, model.embed_dim = 6, 100, 128
model.salience_filter.layer_ratios = [1.0, 0.6, 0.3]
model.encoder.layers = model.encoder.layers[:3]
model.decoder.layers = model.decoder.layers[:3]
for layer in [*model.encoder.layers, *model.decoder.layers]:
    layer.ffn_dim = 512
model.feature_fusion.num_blocks = 1

for loader, split in ((dataloader.train, "train"), (dataloader.test, "val")):
    loader.dataset.names = f"surface_defects_{split}"
    loader.num_workers = 0
dataloader.train.mapper.augmentations = [L(T.RandomFlip)(), L(T.RandomFlip)(horizontal=False, vertical=True)]
dataloader.test.mapper.augmentations = [L(T.ResizeShortestEdge)(short_edge_length=320, max_size=533)]
dataloader.train.total_batch_size = 8

optimizer.lr, optimizer.params.backbone_lr_factor = 4e-4, 1.0
EPOCH = TRAIN_IMAGES // dataloader.train.total_batch_size
train.max_iter = EPOCHS * EPOCH
train.eval_period = train.checkpointer.period = 2 * EPOCH
train.output_dir = "./output/surface_defects_tiny"
lr_multiplier = step_schedule(max_iter=train.max_iter, decay_at=14 * EPOCH, warmup=200)
