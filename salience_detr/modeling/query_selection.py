"""Query selection: the tokens that become decoder queries, without redundant neighbors (paper, section 3.4).

Symbols: B images, S tokens, D channels, K classes, N queries at most, n = most survivors in an image of the batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torchvision.ops import nms

from salience_detr.layers.box_ops import inverse_sigmoid
from salience_detr.modeling.token_pyramid import TokenPyramid, gather_tokens


@dataclass(frozen=True)
class Proposals:
    """The tokens that become queries, best first; images with fewer of them than others have surplus slots behind.

    Attributes:
        token_index: (B, n) flat token.
        logits: (B, n, K) class logits of the tokens.
        boxes: (B, n, 4) (cx, cy, w, h), normalized by the unpadded image size.
        query_mask: (B, n) True = a query, False = surplus slot.
    """

    token_index: Tensor
    logits: Tensor
    boxes: Tensor
    query_mask: Tensor


class QuerySelection(nn.Module):
    """Ranks tokens by their best class, suppresses neighbors on the grid, and proposes a box for each survivor.

    Boxes are computed for the survivors only: no other box is ever used.
    """

    def __init__(
        self,
        *,
        class_head: nn.Linear,
        bbox_head: nn.Module,
        num_queries: int = 900,
        candidate_factor: int = 4,
        iou_threshold: float = 0.3,
    ) -> None:
        super().__init__()
        self.class_head = class_head
        self.bbox_head = bbox_head
        self.num_queries = num_queries
        self.num_candidates = candidate_factor * num_queries
        self.iou_threshold = iou_threshold

    def forward(self, output_memory: Tensor, tokens: TokenPyramid) -> Proposals:
        """(B, S, D) projected memory -> the proposals."""
        logits = self.class_head(output_memory)
        token_index, query_mask = self.select_tokens(logits.detach().amax(-1), tokens)
        return Proposals(
            token_index=token_index,
            logits=gather_tokens(logits, token_index),
            boxes=self.propose_boxes(
                gather_tokens(output_memory, token_index), token_index, tokens
            ),
            query_mask=query_mask,
        )

    def select_tokens(self, scores: Tensor, tokens: TokenPyramid) -> tuple[Tensor, Tensor]:
        """(B, S) scores -> (B, n) tokens, best first, and (B, n) False for surplus slots."""
        survivors = self.select_survivors(scores, tokens)
        token_index = nn.utils.rnn.pad_sequence(survivors, batch_first=True)
        counts = token_index.new_tensor([len(index) for index in survivors])
        slots = torch.arange(token_index.shape[1], device=counts.device)
        return token_index, slots < counts[:, None]

    def propose_boxes(
        self, output_memory: Tensor, token_index: Tensor, tokens: TokenPyramid
    ) -> Tensor:
        """(B, n, D) and (B, n) -> (B, n, 4) boxes; those of invalid tokens are (1, 1, 1, 1)."""
        references = inverse_sigmoid(gather_tokens(tokens.proposals, token_index))
        valid = gather_tokens(tokens.valid_proposals, token_index)
        references = references.masked_fill(~valid[..., None], torch.inf)
        return (self.bbox_head(output_memory).to(references.dtype) + references).sigmoid()

    @torch.no_grad()
    def select_survivors(self, scores: Tensor, tokens: TokenPyramid) -> list[Tensor]:
        """(B, S) scores -> for each image the tokens (at most N) left by the suppression, best first."""
        # Stable: invalid tokens have equal scores, and an image is to be given the same ones in every batch.
        ranking = scores.sort(dim=1, descending=True, stable=True)
        candidates = ranking.indices[:, : self.num_candidates]
        values = ranking.values[:, : self.num_candidates]
        side = (
            max(max(shape) for shape in tokens.level_shapes) + 3
        )  # levels far apart never suppress each other
        points = tokens.token_xy + tokens.token_level[:, None] * side
        survivors = []
        for index, score in zip(candidates, values, strict=True):
            centers = points[index].float()
            kept = nms(
                torch.cat([centers - 1, centers + 1], dim=1), score.float(), self.iou_threshold
            )
            survivors.append(index[kept[: self.num_queries]])
        return survivors
