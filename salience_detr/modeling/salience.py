"""Hierarchical salience filtering: which tokens the encoder refines (paper, section 3.2).

Symbols: B images, L levels, S tokens, D channels, n_b selected tokens of image b, n = max of n_b.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from salience_detr.modeling.token_pyramid import TokenPyramid


@dataclass(frozen=True)
class SalienceSelection:
    """The selected tokens of each image, by falling salience.

    Each image has its own count; slots beyond it hold other, distinct tokens of the image, so that one index can
    be gathered and scattered for the whole batch.

    Attributes:
        score_maps: L tensors (B, H_l, W_l), salience logits, padding included.
        token_index: (B, n) flat token of each slot.
        scores: (B, n) salience logit of each slot.
        slot_mask: (B, n) True for the first n_b slots of image b.
        layer_masks: for each encoder layer (B, n_i), True for the leading slots that it refines in image b.
    """

    score_maps: list[Tensor]
    token_index: Tensor
    scores: Tensor
    slot_mask: Tensor
    layer_masks: list[Tensor]

    @property
    def counts(self) -> list[int]:
        """n_b of each image."""
        return self.slot_mask.sum(1).tolist()

    @property
    def layer_counts(self) -> list[list[int]]:
        """For each encoder layer, how many tokens of each image it refines."""
        return [mask.sum(1).tolist() for mask in self.layer_masks]


class SalienceHead(nn.Module):
    """Salience logit of each token, from the token and the mean of its level."""

    def __init__(self, *, embed_dim: int = 256) -> None:
        super().__init__()
        half, quarter = embed_dim // 2, embed_dim // 4
        self.local = nn.Sequential(
            nn.LayerNorm(embed_dim), nn.Linear(embed_dim, embed_dim), nn.GELU()
        )
        self.score = nn.Sequential(
            nn.Linear(embed_dim, half),
            nn.GELU(),
            nn.Linear(half, quarter),
            nn.GELU(),
            nn.Linear(quarter, 1),
        )
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, H_l * W_l, D) tokens of one level -> (B, H_l * W_l) logits."""
        local, context = self.local(tokens).chunk(2, dim=-1)
        context = context.mean(dim=1, keepdim=True).expand_as(local)
        return self.score(torch.cat([local, context], dim=-1)).squeeze(-1)


class SalienceFilter(nn.Module):
    """Scores all tokens, coarse to fine, and selects each image's most salient ones.

    ``level_ratios``: kept part of the unpadded tokens of each level. ``layer_ratios``: part of the selected tokens
    that each encoder layer refines. An image is given the tokens that it would be given alone in the batch;
    padding is never selected.
    """

    def __init__(
        self, *, embed_dim: int = 256, level_ratios: Sequence[float], layer_ratios: Sequence[float]
    ) -> None:
        super().__init__()
        for name, ratios in (("level_ratios", level_ratios), ("layer_ratios", layer_ratios)):
            if not all(0 < ratio <= 1 for ratio in ratios):
                raise ValueError(f"{name} must lie in (0, 1], got {list(ratios)}")
        self.level_ratios = tuple(level_ratios)
        self.layer_ratios = tuple(layer_ratios)
        self.head = SalienceHead(embed_dim=embed_dim)
        self.alpha = nn.Parameter(torch.empty(len(level_ratios) - 1))
        nn.init.uniform_(self.alpha, -0.3, 0.3)

    def forward(self, memory: Tensor, tokens: TokenPyramid) -> SalienceSelection:
        """(B, S, D) projected backbone tokens, zeroed before the projection where invalid -> the selection."""
        score_maps = self.score_levels(memory, tokens)
        scores = torch.cat([x.flatten(1) for x in score_maps], dim=1)
        level_counts = self.count_tokens(tokens)
        counts = level_counts.sum(1)
        slots = self.count_slots(level_counts, tokens)
        with torch.no_grad():
            chosen = self.select_tokens(scores, level_counts, tokens)
            ranking = scores.masked_fill(~chosen, -torch.inf).argsort(
                dim=1, descending=True, stable=True
            )
            token_index = ranking[:, :slots]
        slot_number = torch.arange(slots, device=scores.device)
        return SalienceSelection(
            score_maps=score_maps,
            token_index=token_index,
            scores=scores.gather(1, token_index),
            slot_mask=slot_number < counts[:, None],
            layer_masks=[
                slot_number[: self.count_layer_slots(slots, i)]
                < self.count_layer_tokens(counts, i)[:, None]
                for i in range(len(self.layer_ratios))
            ],
        )

    def score_levels(self, memory: Tensor, tokens: TokenPyramid) -> list[Tensor]:
        """(B, S, D) -> L score maps (B, H_l, W_l); each level is modulated by the scores of the coarser one.

        The head starts with a LayerNorm, so a positive factor cancels: as published, the modulation acts
        only where it turns negative.
        """
        levels = tokens.split_levels(memory)
        maps: list[Tensor] = []
        for level in reversed(range(len(levels))):
            level_tokens, shape = levels[level], tokens.level_shapes[level]
            if maps:
                coarser = F.interpolate(
                    maps[0][:, None], size=shape, mode="bilinear", align_corners=True
                )
                level_tokens = level_tokens * (
                    1 + coarser.flatten(1)[..., None] * self.alpha[level]
                )
            maps.insert(0, self.head(level_tokens).unflatten(1, shape))
        return maps

    def count_tokens(self, tokens: TokenPyramid) -> Tensor:
        """(B, L) int64: the unpadded tokens of each level times its ratio, truncated."""
        unpadded = torch.stack(
            [(~mask).sum(1) for mask in tokens.split_levels(tokens.padding_mask)], dim=1
        )
        ratios = torch.tensor(self.level_ratios, dtype=torch.float64, device=unpadded.device)
        return (unpadded * ratios).long()

    def count_slots(self, level_counts: Tensor, tokens: TokenPyramid) -> int:
        """Slots that are enough for every image, here those of the image with most selected tokens."""
        return int(level_counts.sum(1).max())

    def count_layer_slots(self, slots: int, layer: int) -> int:
        """How many of the slots are enough for an encoder layer."""
        return max(1, int(slots * self.layer_ratios[layer]))

    def count_layer_tokens(self, counts: Tensor, layer: int) -> Tensor:
        """(B,) selected tokens -> (B,) those that an encoder layer refines."""
        # Below 1 / ratio tokens the product truncates to none; a layer always refines something.
        return (
            (counts * torch.tensor(self.layer_ratios[layer], dtype=torch.float64))
            .long()
            .clamp(min=1)
        )

    @staticmethod
    def select_tokens(scores: Tensor, level_counts: Tensor, tokens: TokenPyramid) -> Tensor:
        """(B, S) True for the ``level_counts`` highest scores of each level, padding excluded."""
        unpadded_scores = scores.masked_fill(tokens.padding_mask, -torch.inf)
        chosen = []
        for level, level_scores in enumerate(tokens.split_levels(unpadded_scores)):
            ranking = level_scores.argsort(dim=1, descending=True, stable=True)
            ranks = torch.arange(level_scores.shape[1], device=scores.device)
            kept = ranks < level_counts[:, level, None]
            chosen.append(torch.zeros_like(kept).scatter(1, ranking, kept))
        return torch.cat(chosen, dim=1)
