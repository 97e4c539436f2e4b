"""Position relation: self-attention knows how boxes lie to each other (Relation-DETR, section 3.2).

Symbols: B images, N queries, M heads.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from salience_detr.layers.activation_checkpointing import checkpoint_activations
from salience_detr.layers.position_encoding import sine_encoding

SCALE = 100.0  # of the relations, before their sines


class PositionRelation(nn.Module):
    """Attention logits of each pair of queries, from their boxes after two successive layers.

    Args:
        num_heads: M, that of the self-attention.
        num_features: of the encoding of each of the four relations.
        use_checkpoint: activation checkpointing of the (B, N, N, 4 * num_features) encoding.
    """

    def __init__(
        self, *, num_heads: int = 8, num_features: int = 16, use_checkpoint: bool = False
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.num_features = num_features
        self.projection = nn.Linear(4 * num_features, num_heads)

        if use_checkpoint:
            checkpoint_activations(self)

    def forward(self, earlier: Tensor, later: Tensor) -> Tensor:
        """Return (B, M, N, N) logits of the pairs of (B, N, 4) earlier and later boxes, cxcywh.

        Boxes get no gradient.
        """
        relations = box_relations(earlier.detach(), later.detach())
        encoding = sine_encoding(relations * (SCALE / (2 * math.pi)), self.num_features)
        logits = self.projection(encoding.flatten(-2).to(self.projection.weight))
        return logits.relu().permute(0, 3, 1, 2)


def box_relations(earlier: Tensor, later: Tensor, eps: float = 1e-5) -> Tensor:
    """Return (B, N, N, 4) relations of each earlier box (row) to each later one, both cxcywh.

    log(|dx| / w + 1) and log(|dy| / h + 1), with the size of the earlier box, and log(w / w') and
    log(h / h'), with that of the later box below.
    """
    center, size = earlier[:, :, None].split(2, dim=-1)
    later_center, later_size = later[:, None].split(2, dim=-1)
    size = size + eps

    distance = ((center - later_center).abs() / size + 1).log()
    ratio = (size / (later_size + eps)).log()
    return torch.cat([distance, ratio], dim=-1)
