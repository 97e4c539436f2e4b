"""Hybrid queries: a second set in training, several of which learn each object (H-DETR, CVPR 2023).

Symbols: B images, S tokens, D channels, N queries of the set.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from salience_detr.modeling.criterion import SetCriterion
from salience_detr.modeling.decoder import SalienceDecoder
from salience_detr.modeling.query_selection import QuerySelection
from salience_detr.modeling.structures import (
    DetectionPredictions,
    DetectionTargets,
    Encoding,
    LossNormalizers,
)
from salience_detr.modeling.token_pyramid import TokenPyramid


class HybridQueries(QuerySelection):
    """Selection, contents and losses of the second set.

    They share the decoder, which decodes them on their own: neither set sees the other one, and
    they have no position relation (as in Relation-DETR). Each box is the target of
    ``queries_per_box`` of them. Evaluation leaves them out.

    Args:
        class_head, bbox_head: of their proposals.
        embed_dim: D.
        num_queries: N at most; a batch of fewer tokens per image has a query for each.
        queries_per_box: times that each box is matched, one-to-one.

    Raises:
        ValueError: a number is below 1.
    """

    def __init__(
        self,
        *,
        class_head: nn.Linear,
        bbox_head: nn.Module,
        embed_dim: int = 256,
        num_queries: int = 1500,
        queries_per_box: int = 6,
    ) -> None:
        if min(num_queries, queries_per_box) < 1:
            raise ValueError(
                f"hybrid_queries has num_queries {num_queries} and queries_per_box "
                f"{queries_per_box}; both must be at least 1, or model.hybrid_queries null"
            )
        super().__init__(class_head=class_head, bbox_head=bbox_head, num_queries=num_queries)
        self.queries_per_box = queries_per_box

        self.embedding = nn.Parameter(torch.empty(num_queries, embed_dim))
        nn.init.normal_(self.embedding)

    def select_tokens(self, scores: Tensor, tokens: TokenPyramid) -> tuple[Tensor, Tensor]:
        """Select the tokens of the highest (B, S) scores, neighbors too.

        Returns:
            (B, N) token index, best first, tokens of the padding last; and N for each image.
        """
        scores = scores.masked_fill(~tokens.output_proposals_valid, -torch.inf)
        ranking = scores.argsort(dim=1, descending=True, stable=True)
        token_index = ranking[:, : self.num_queries]
        return token_index, torch.full((len(scores),), token_index.shape[1])

    def losses(
        self,
        encoding: Encoding,
        decoder: SalienceDecoder,
        criterion: SetCriterion,
        targets: DetectionTargets,
        normalizers: LossNormalizers,
    ) -> dict[str, Tensor]:
        """Decode these queries, and compute their losses.

        Args:
            encoding: of the images; their proposals are made of its ``output_memory``.
            decoder, criterion: those of the other queries.
            targets: ground truth of B images, boxes cxcywh, normalized by the unpadded image size.
            normalizers: of the batch.

        Returns:
            The losses of the criterion, divided by ``queries_per_box`` times the number of boxes,
            with ``_hybrid`` at the end of their names.
        """
        proposals = self(encoding.output_memory, encoding.tokens)
        boxes = proposals.pred_boxes.detach()
        query = self.embedding[: boxes.shape[1]].expand(len(boxes), -1, -1)
        predictions = decoder(query, boxes, encoding.memory, encoding.tokens, use_relation=False)

        proposed = DetectionPredictions(proposals.pred_logits[None], proposals.pred_boxes[None])
        targets = targets.repeat(self.queries_per_box)
        normalizers = replace(normalizers, num_boxes=normalizers.num_boxes * self.queries_per_box)
        losses = criterion(predictions, proposed, targets, normalizers)
        return {f"{name}_hybrid": loss for name, loss in losses.items()}
