"""Salience DETR on ResNet-50: 4 levels of strides 8 to 64, 900 queries (paper, section 4.1)."""

from detectron2.config import LazyCall as L

from salience_detr.layers.heads import bbox_head, class_head
from salience_detr.modeling.criterion import SetCriterion
from salience_detr.modeling.decoder import SalienceDecoder, SalienceDecoderLayer
from salience_detr.modeling.denoising import DenoisingGenerator
from salience_detr.modeling.encoder import (
    BackgroundEmbedding,
    SalienceEncoder,
    SalienceEncoderLayer,
)
from salience_detr.modeling.feature_fusion import FeatureFusion
from salience_detr.modeling.matcher import HungarianMatcher
from salience_detr.modeling.neck import ChannelMapper
from salience_detr.modeling.query_selection import QuerySelection
from salience_detr.modeling.salience import SalienceFilter
from salience_detr.modeling.salience_detr import SalienceDETR
from salience_detr.modeling.salience_loss import SalienceCriterion
from salience_detr.modeling.token_pyramid import TokenProjection, TokenPyramidBuilder

from .backbones import resnet

model = L(SalienceDETR)(
    # The sizes that several stages share are stated here and nowhere else.
    num_classes=80,
    num_queries=900,
    input_format="RGB",
    embed_dim=256,
    backbone=resnet(50),
    neck=L(ChannelMapper)(
        in_features="${..backbone.out_features}",
        in_channels=[512, 1024, 2048],
        out_channels="${..embed_dim}",
        num_extra_levels=1,
    ),
    token_pyramid=L(TokenPyramidBuilder)(embed_dim="${..embed_dim}", num_levels=4),
    token_projection=L(TokenProjection)(embed_dim="${..embed_dim}"),
    salience_filter=L(SalienceFilter)(
        embed_dim="${..embed_dim}",
        level_ratios=[0.4, 0.8, 1.0, 1.0],
        layer_ratios=[1.0, 0.8, 0.6, 0.6, 0.4, 0.2],
    ),
    encoder=L(SalienceEncoder)(
        layers=[
            L(SalienceEncoderLayer)(
                embed_dim="${....embed_dim}", num_heads=8, ffn_dim=2048, num_topk=300
            )
            for _ in range(6)
        ],
        background_embedding=L(BackgroundEmbedding)(embed_dim="${...embed_dim}", size=200),
        use_checkpoint=False,
    ),
    feature_fusion=L(FeatureFusion)(channels="${..embed_dim}", num_levels=4),
    query_selection=L(QuerySelection)(
        class_head=L(class_head)(embed_dim="${...embed_dim}", num_classes="${...num_classes}"),
        bbox_head=L(bbox_head)(embed_dim="${...embed_dim}"),
        num_queries="${..num_queries}",
    ),
    decoder=L(SalienceDecoder)(
        layers=[
            L(SalienceDecoderLayer)(embed_dim="${....embed_dim}", num_heads=8, ffn_dim=2048)
            for _ in range(6)
        ],
        embed_dim="${..embed_dim}",
        num_classes="${..num_classes}",
    ),
    denoising=L(DenoisingGenerator)(
        num_classes="${..num_classes}",
        embed_dim="${..embed_dim}",
        num_queries="${..num_queries}",
        denoising_queries=100,
        label_noise_prob=0.25,
        box_noise_scale=1.0,
    ),
    criterion=L(SetCriterion)(
        matcher=L(HungarianMatcher)(class_weight=2.0, l1_weight=5.0, giou_weight=2.0),
        class_weight=1.0,
        l1_weight=5.0,
        giou_weight=2.0,
    ),
    salience_criterion=L(SalienceCriterion)(weight=2.0),
)
