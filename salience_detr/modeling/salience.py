"""Hierarchical salience filtering: the tokens that the encoder refines (paper, section 3.2).

Symbols: B images, L levels, S tokens, D channels, n_b selected tokens of image b, n = max of n_b.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from salience_detr.layers.transfer import to_device
from salience_detr.modeling.token_pyramid import TokenPyramid


@dataclass(frozen=True)
class SalienceSelection:
    """Selected tokens of each image, by falling salience.

    Images with fewer than n selected tokens are padded by other, distinct tokens of their own, so
    that one index can be gathered and scattered for the whole batch.

    Attributes:
        score_maps: L tensors (B, H_l, W_l), salience logits, padding included.
        token_index: (B, n) index of each token in the pyramid.
        scores: (B, n) salience logit of each token.
        valid_mask: (B, n) True for the first n_b tokens of image b, False for those that pad.
        layer_masks: for each encoder layer (B, n_i), True for the leading tokens that it refines.
    """

    score_maps: list[Tensor]
    token_index: Tensor
    scores: Tensor
    valid_mask: Tensor
    layer_masks: list[Tensor]

    @property
    def counts(self) -> list[int]:
        """Number n_b of selected tokens of each image."""
        return self.valid_mask.sum(1).tolist()

    @property
    def layer_counts(self) -> list[list[int]]:
        """Number of tokens of each image that each encoder layer refines."""
        return [mask.sum(1).tolist() for mask in self.layer_masks]


class SalienceHead(nn.Module):
    """Salience logit of each token, from the token and the mean of its level."""

    def __init__(self, *, embed_dim: int = 256) -> None:
        super().__init__()

        half = embed_dim // 2
        quarter = embed_dim // 4

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

    def forward(self, tokens: Tensor, factor: Tensor | None = None) -> Tensor:
        """Score the tokens of one level.

        Args:
            tokens: (B, H_l * W_l, D).
            factor: (B, H_l * W_l, 1) modulation by the coarser level; None if there is none.

        Returns:
            (B, H_l * W_l) logits.
        """
        # One half of the channels is the token's own, the other the mean over its level.
        local, context = self.embed(tokens, factor).chunk(2, dim=-1)
        context = context.mean(dim=1, keepdim=True).expand_as(local)
        return self.score(torch.cat([local, context], dim=-1)).squeeze(-1)

    def embed(self, tokens: Tensor, factor: Tensor | None) -> Tensor:
        """Return (B, H_l * W_l, D) features of modulated tokens.

        As published, the LayerNorm cancels a positive factor.
        """
        if factor is not None:
            tokens = tokens * factor
        return self.local(tokens)


class NormModulatedSalienceHead(SalienceHead):
    """A salience head that the coarser level modulates behind its LayerNorm, where it acts."""

    def embed(self, tokens: Tensor, factor: Tensor | None) -> Tensor:
        """Return (B, H_l * W_l, D) features of normalized tokens times the factor."""
        norm, linear, activation = self.local
        normalized = norm(tokens)
        if factor is not None:
            normalized = normalized * factor
        return activation(linear(normalized))


class SalienceFilter(nn.Module):
    """Scores all tokens, coarse to fine, and selects the most salient ones of each image.

    An image gets the tokens that it would get alone in the batch; padding is never selected.

    Args:
        level_ratios: part of the unpadded tokens of each level that is selected.
        layer_ratios: part of the selected tokens that each encoder layer refines.
        head: scores the tokens of a level; None for a :class:`SalienceHead`.

    Raises:
        ValueError: a ratio is not in (0, 1].
    """

    def __init__(
        self,
        *,
        embed_dim: int = 256,
        level_ratios: Sequence[float],
        layer_ratios: Sequence[float],
        head: SalienceHead | None = None,
    ) -> None:
        super().__init__()

        for name, ratios in (("level_ratios", level_ratios), ("layer_ratios", layer_ratios)):
            if not all(0 < ratio <= 1 for ratio in ratios):
                raise ValueError(f"{name} must lie in (0, 1], got {list(ratios)}")

        self.level_ratios = tuple(level_ratios)
        self.layer_ratios = tuple(layer_ratios)

        self.head = head or SalienceHead(embed_dim=embed_dim)
        self.alpha = nn.Parameter(torch.empty(len(level_ratios) - 1))
        nn.init.uniform_(self.alpha, -0.3, 0.3)

    def forward(self, memory: Tensor, tokens: TokenPyramid) -> SalienceSelection:
        """Score and select tokens.

        Args:
            memory: (B, S, D) projected backbone tokens, zeroed before the projection where invalid.
            tokens: shapes and padding of the memory.
        """
        score_maps = self.score_levels(memory, tokens)
        scores = torch.cat([x.flatten(1) for x in score_maps], dim=1)

        # How many tokens each level and each image keeps, and the length that holds all images.
        level_counts = self.num_kept(tokens)
        counts = level_counts.sum(1)
        length = self.max_selected(level_counts, tokens)

        # Selected tokens first, by falling salience; the ranking itself has no gradient.
        with torch.no_grad():
            chosen = self.select_tokens(scores, level_counts, tokens)
            ranking = scores.masked_fill(~chosen, -torch.inf)
            ranking = ranking.argsort(dim=1, descending=True, stable=True)
            token_index = ranking[:, :length]

        # Each encoder layer refines a shorter prefix than the one before it.
        rank = torch.arange(length, device=scores.device)
        num_refined = self.num_refined(counts)
        layer_masks = []
        for layer in range(len(self.layer_ratios)):
            layer_rank = rank[: self.max_refined(length, layer)]
            layer_masks.append(layer_rank < num_refined[:, layer, None])

        return SalienceSelection(
            score_maps=score_maps,
            token_index=token_index,
            scores=scores.gather(1, token_index),
            valid_mask=rank < counts[:, None],
            layer_masks=layer_masks,
        )

    def score_levels(self, memory: Tensor, tokens: TokenPyramid) -> list[Tensor]:
        """Score (B, S, D) tokens level by level, each level modulated by the coarser one.

        The published head starts with a LayerNorm, so a positive factor cancels: the modulation
        acts only where it turns negative. In a :class:`NormModulatedSalienceHead` it always acts.

        Returns:
            L score maps (B, H_l, W_l) of logits, finest first.
        """
        levels = tokens.split_levels(memory)

        maps: list[Tensor] = []
        for level in reversed(range(len(levels))):
            level_tokens = levels[level]
            shape = tokens.spatial_shapes_list[level]

            # 1 + alpha * upsampled score of the coarser level
            factor = None
            if maps:
                coarser = maps[0][:, None]
                upsampled = F.interpolate(coarser, size=shape, mode="bilinear", align_corners=True)
                modulation = upsampled.flatten(1)[..., None] * self.alpha[level]
                factor = 1 + modulation

            maps.insert(0, self.head(level_tokens, factor).unflatten(1, shape))

        return maps

    def num_kept(self, tokens: TokenPyramid) -> Tensor:
        """Return (B, L) int64: the unpadded tokens of each level times its ratio, truncated."""
        unpadded = tokens.valid_sizes.prod(-1)
        ratios = to_device(self.level_ratios, unpadded, torch.float64)
        return (unpadded * ratios).long()

    @torch.compiler.disable(reason="the length is known on the host alone")
    def max_selected(self, level_counts: Tensor, tokens: TokenPyramid) -> int:
        """Return the length n that holds the selected tokens of every image.

        A method of its own because an exported graph, whose shapes are free, takes a bound instead.
        """
        return int(level_counts.sum(1).max())

    def max_refined(self, length: int, layer: int) -> int:
        """Return the length n_i that holds the tokens of a layer; exported graphs replace this."""
        return max(1, int(length * self.layer_ratios[layer]))

    def num_refined(self, counts: Tensor) -> Tensor:
        """Return how many of the (B,) selected tokens each encoder layer refines, (B, I) int64."""
        # Below 1 / ratio tokens the product truncates to none; a layer always refines something.
        ratios = to_device(self.layer_ratios, counts, torch.float64)
        return (counts[:, None] * ratios).long().clamp(min=1)

    @staticmethod
    def select_tokens(scores: Tensor, level_counts: Tensor, tokens: TokenPyramid) -> Tensor:
        """Return (B, S) True for the ``level_counts`` best scores of each level, never padding."""
        unpadded_scores = scores.masked_fill(tokens.padding_mask, -torch.inf)

        chosen = []
        for level, level_scores in enumerate(tokens.split_levels(unpadded_scores)):
            ranking = level_scores.argsort(dim=1, descending=True, stable=True)

            ranks = torch.arange(level_scores.shape[1], device=scores.device)
            kept = ranks < level_counts[:, level, None]
            chosen.append(torch.zeros_like(kept).scatter(1, ranking, kept))
        return torch.cat(chosen, dim=1)
