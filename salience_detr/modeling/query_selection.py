"""Query selection: tokens that become queries, without redundant neighbors (paper, section 3.4).

Symbols: B images, S tokens, D channels, K classes, N queries at most, n = most queries in an image
of the batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn
from torchvision.ops import nms

from salience_detr.layers.box_ops import inverse_sigmoid
from salience_detr.modeling.token_pyramid import TokenPyramid, gather_tokens


@dataclass(frozen=True)
class Proposals:
    """Tokens that become queries, best first; images with fewer than n queries are padded.

    Attributes:
        token_index: (B, n) index of each token in the pyramid.
        pred_logits: (B, n, K) class logits of the tokens.
        pred_boxes: (B, n, 4) (cx, cy, w, h), normalized by the unpadded image size.
        num_valid: (B,) int64 number of queries of each image, which come first; on the CPU, but for
            exported graphs.
    """

    token_index: Tensor
    pred_logits: Tensor
    pred_boxes: Tensor
    num_valid: Tensor

    @cached_property
    def valid_mask(self) -> Tensor:
        """(B, n) True = query, False = padding."""
        return valid_mask(self.num_valid, self.token_index)


class QuerySelection(nn.Module):
    """Ranks tokens by their best class, suppresses neighbors, and gives each kept token a box.

    Args:
        num_queries: N.
        candidate_factor: the NMS is given this many times N tokens.
        iou_threshold: of the NMS, for boxes of 2 x 2 tokens around the tokens.
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
        """(B, S, D) projected memory -> proposals."""
        logits = self.class_head(output_memory)
        token_index, num_valid = self.select_tokens(logits.detach().amax(-1), tokens)

        # Boxes of the selected tokens only: no other box is ever used.
        selected = gather_tokens(output_memory, token_index)

        return Proposals(
            token_index=token_index,
            pred_logits=gather_tokens(logits, token_index),
            pred_boxes=self.propose_boxes(selected, token_index, tokens),
            num_valid=num_valid,
        )

    def select_tokens(self, scores: Tensor, tokens: TokenPyramid) -> tuple[Tensor, Tensor]:
        """Select tokens by their (B, S) scores.

        Returns:
            (B, n) token index, best first, padded, and the (B,) number of queries of each image.
        """
        keep = self.nms_keep_indices(scores, tokens)
        token_index = nn.utils.rnn.pad_sequence(keep, batch_first=True)
        return token_index, torch.tensor([len(index) for index in keep])

    def propose_boxes(
        self, output_memory: Tensor, token_index: Tensor, tokens: TokenPyramid
    ) -> Tensor:
        """Return (B, n, 4) boxes of the tokens (B, n, D), (1, 1, 1, 1) for the invalid ones."""
        reference = inverse_sigmoid(gather_tokens(tokens.output_proposals, token_index))
        valid = gather_tokens(tokens.output_proposals_valid, token_index)
        reference = reference.masked_fill(~valid[..., None], torch.inf)

        offsets = self.bbox_head(output_memory).to(reference.dtype)
        return (offsets + reference).sigmoid()

    @torch.no_grad()
    def nms_keep_indices(self, scores: Tensor, tokens: TokenPyramid) -> list[Tensor]:
        """Suppress neighboring tokens on each level by their (B, S) scores.

        Returns:
            For each image the indices of at most N tokens, best first.
        """
        # Stable: invalid tokens tie, and an image must get the same ones in every batch.
        ranking = scores.sort(dim=1, descending=True, stable=True)
        candidates = ranking.indices[:, : self.num_candidates]
        candidate_scores = ranking.values[:, : self.num_candidates]

        # Levels are laid so far apart that they never suppress each other.
        distance = max(max(shape) for shape in tokens.spatial_shapes_list) + 3
        points = tokens.token_xy + tokens.token_level[:, None] * distance

        keep_indices = []
        for index, score in zip(candidates, candidate_scores, strict=True):
            centers = points[index].float()
            boxes = torch.cat([centers - 1, centers + 1], dim=1)

            keep = nms(boxes, score.float(), self.iou_threshold)
            keep_indices.append(index[keep[: self.num_queries]])

        return keep_indices


def valid_mask(num_valid: Tensor, padded: Tensor) -> Tensor:
    """Return (B, n), True for the first ``num_valid`` (B,) entries of ``padded`` (B, n, ...)."""
    rank = torch.arange(padded.shape[1], device=padded.device)
    return rank < num_valid.to(padded.device, non_blocking=True)[:, None]
