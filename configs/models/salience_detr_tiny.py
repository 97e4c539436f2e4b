"""Small Salience DETR for images of 320 pixels, to train on two CPU cores: only numbers differ."""

from detectron2.config import LazyCall as L
from detectron2.modeling.backbone.resnet import BasicBlock, BasicStem, ResNet

from .salience_detr_r50 import model

# A thin ResNet-18, trained from scratch.
STEM_WIDTH = 32
WIDTHS = [32, 64, 128, 256]
model.backbone.stem = L(BasicStem)(in_channels=3, out_channels=STEM_WIDTH, norm="BN")
model.backbone.stages = [
    L(ResNet.make_stage)(
        block_class=BasicBlock,
        num_blocks=2,
        stride_per_block=[stride, 1],
        in_channels=in_channels,
        out_channels=out_channels,
        norm="BN",
    )
    for in_channels, out_channels, stride in zip(
        [STEM_WIDTH, *WIDTHS[:-1]], WIDTHS, [1, 2, 2, 2], strict=True
    )
]
model.backbone.freeze_at = 0
model.neck.in_channels = WIDTHS[1:]

# Three levels, of 40, 20 and 10 tokens a side.
NUM_LEVELS = 3
model.neck.num_extra_levels = 0
model.token_pyramid.num_levels = NUM_LEVELS
model.feature_fusion.num_levels = NUM_LEVELS
model.salience_filter.level_ratios = [0.25, 0.5, 1.0]
model.salience_criterion.level_ranges = [(-1, 32), (32, 64), (64, 99999)]

# Two encoder and three decoder layers.
model.salience_filter.layer_ratios = [1.0, 0.5]
model.encoder.layers = model.encoder.layers[:2]
model.decoder.layers = model.decoder.layers[:3]
for _layer in [*model.encoder.layers, *model.decoder.layers]:
    _layer.num_levels = NUM_LEVELS
    _layer.ffn_dim = 384
for _layer in model.encoder.layers:
    _layer.num_topk = 100
model.feature_fusion.num_blocks = 1

model.embed_dim = 96
model.num_classes = 6
model.num_queries = 60
model.denoising.denoising_queries = 30
