"""The smallest model that has every part, for tests; only sizes differ from the real configs."""

from detectron2.config import LazyCall as L
from detectron2.modeling.backbone.resnet import BasicBlock, BasicStem, ResNet

from salience_detr.data import ResizeShortestEdge

from ...configs.common.schedule import step_schedule
from ...configs.surface_defects_tiny import dataloader, model, optimizer, train

WIDTHS = [8, 16, 24, 32]
model.backbone.stem = L(BasicStem)(in_channels=3, out_channels=8, norm="BN")
model.backbone.stages = [
    L(ResNet.make_stage)(
        block_class=BasicBlock,
        num_blocks=1,
        stride_per_block=[first],
        in_channels=before,
        out_channels=after,
        norm="BN",
    )
    for before, after, first in zip([8, *WIDTHS[:-1]], WIDTHS, [1, 2, 2, 2], strict=True)
]
model.neck.in_channels = WIDTHS[1:]
model.neck.num_groups = 4
model.embed_dim, model.num_queries = 32, 20
model.encoder.layers = model.encoder.layers[:2]
model.decoder.layers = model.decoder.layers[:2]
for _layer in [*model.encoder.layers, *model.decoder.layers]:
    _layer.num_heads, _layer.ffn_dim = 4, 32
model.denoising.denoising_queries = 4

dataloader.test.mapper.augmentations = [L(ResizeShortestEdge)(short_edge_length=64, max_size=128)]
dataloader.train.total_batch_size = 2
train.epochs = 1
train.max_iter, train.eval_period, train.checkpointer.period, train.log_period = 6, 0, 2, 1
lr_multiplier = step_schedule(max_iter=train.max_iter, decay_at=5, warmup=2)
