"""The micro model with the changes of docs/beyond_the_paper.md."""

from detectron2.config import LazyCall as L

from salience_detr.layers.heads import bbox_head, class_head
from salience_detr.layers.losses import MatchabilityAwareLoss
from salience_detr.modeling.criterion import OneToManyCriterion
from salience_detr.modeling.decoder import OneToManyDecoder
from salience_detr.modeling.encoder import ProbabilityEncoder
from salience_detr.modeling.hybrid_queries import HybridQueries
from salience_detr.modeling.matcher import OneToManyMatcher
from salience_detr.modeling.position_relation import PositionRelation
from salience_detr.modeling.salience import NormModulatedSalienceHead

from .micro import dataloader, lr_multiplier, model, optimizer, train

model.criterion.class_loss = L(MatchabilityAwareLoss)(gamma=1.5)

model.decoder._target_ = OneToManyDecoder
model.criterion._target_ = OneToManyCriterion
model.criterion.one_to_many_matcher = L(OneToManyMatcher)()

model.decoder.position_relation = L(PositionRelation)(num_heads=4, use_checkpoint=True)

model.hybrid_queries = L(HybridQueries)(
    class_head=L(class_head)(embed_dim="${...embed_dim}", num_classes="${...num_classes}"),
    bbox_head=L(bbox_head)(embed_dim="${...embed_dim}"),
    embed_dim="${..embed_dim}",
    num_queries=20,
    queries_per_box=3,
)

model.encoder._target_ = ProbabilityEncoder
model.salience_filter.head = L(NormModulatedSalienceHead)(embed_dim="${...embed_dim}")
