"""Maps of all levels as one sequence of tokens, with what the later stages need to know of each token.

Symbols: B images, L levels of size (H_l, W_l), S = sum of H_l * W_l tokens, D channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from salience_detr.layers.position_encoding import SinePositionEncoding


@dataclass(frozen=True)
class TokenPyramid:
    """Tokens of a batch, flattened level by level (finest first) and row by row.

    Attributes:
        features: (B, S, D).
        positions: (B, S, D) sine encoding plus level embedding.
        padding_mask: (B, S) True = padding.
        level_shapes: (H_l, W_l) of each level.
        valid_sizes: (B, L, 2) unpadded (width, height) of each level in tokens, float32 at least.
    """

    features: Tensor
    positions: Tensor
    padding_mask: Tensor
    level_shapes: tuple[tuple[int, int], ...]
    valid_sizes: Tensor

    @cached_property
    def spatial_shapes(self) -> Tensor:
        """(L, 2) int64 (H_l, W_l)."""
        return torch.tensor(self.level_shapes, dtype=torch.int64, device=self.features.device)

    @property
    def level_sizes(self) -> list[int]:
        """Tokens per level, H_l * W_l."""
        return [height * width for height, width in self.level_shapes]

    @cached_property
    def level_start_index(self) -> Tensor:
        """(L,) int64 index of the first token of each level."""
        sizes = torch.tensor([0, *self.level_sizes[:-1]], device=self.features.device)
        return sizes.cumsum(0)

    @cached_property
    def token_level(self) -> Tensor:
        """(S,) int64 level of each token."""
        sizes = torch.tensor(self.level_sizes, device=self.features.device)
        return torch.arange(len(sizes), device=sizes.device).repeat_interleave(
            sizes, output_size=sum(self.level_sizes)
        )

    @cached_property
    def token_xy(self) -> Tensor:
        """(S, 2) int64 (column, row) of each token on its level."""
        grids = []
        for height, width in self.level_shapes:
            y = torch.arange(height, device=self.features.device)
            x = torch.arange(width, device=self.features.device)
            grids.append(torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1).flatten(0, 1))
        return torch.cat(grids)

    @cached_property
    def valid_ratios(self) -> Tensor:
        """(B, L, 2) unpadded part of each level, (width, height), in (0, 1]."""
        return self.valid_sizes / self.spatial_shapes.flip(-1)

    @cached_property
    def centers(self) -> Tensor:
        """(B, S, 2) token centers (x, y), normalized by the unpadded image."""
        return (self.token_xy + 0.5) / self.valid_sizes[:, self.token_level]

    @cached_property
    def proposals(self) -> Tensor:
        """(B, S, 4) a box (cx, cy, w, h) for each token, normalized: its center, with side 0.05 * 2^level."""
        side = 0.05 * 2.0 ** self.token_level.to(self.centers.dtype)
        return torch.cat(
            [self.centers, side[:, None].expand(-1, 2).expand_as(self.centers)], dim=-1
        )

    @cached_property
    def valid_proposals(self) -> Tensor:
        """(B, S) True where the token is unpadded and all four numbers of its proposal lie in (0.01, 0.99)."""
        inside = ((self.proposals > 0.01) & (self.proposals < 0.99)).all(-1)
        return inside & ~self.padding_mask

    def split_levels(self, tokens: Tensor) -> list[Tensor]:
        """(B, S, ...) -> L tensors (B, H_l * W_l, ...)."""
        return list(tokens.split(self.level_sizes, dim=1))

    def to_maps(self, tokens: Tensor) -> list[Tensor]:
        """(B, S, D) -> L maps (B, D, H_l, W_l)."""
        levels = zip(self.split_levels(tokens), self.level_shapes, strict=True)
        return [tokens_l.transpose(1, 2).unflatten(2, shape) for tokens_l, shape in levels]


def flatten_maps(maps: list[Tensor]) -> Tensor:
    """L maps (B, D, H_l, W_l) -> (B, S, D); the inverse of :meth:`TokenPyramid.to_maps`."""
    return torch.cat([x.flatten(2).transpose(1, 2) for x in maps], dim=1)


class TokenPyramidBuilder(nn.Module):
    """Flattens the levels and gives each token its position, its level and its padding."""

    def __init__(self, *, embed_dim: int = 256, num_levels: int = 4) -> None:
        super().__init__()
        self.position_encoding = SinePositionEncoding(num_features=embed_dim // 2)
        self.level_embeds = nn.Parameter(torch.empty(num_levels, embed_dim))
        nn.init.normal_(self.level_embeds)

    def forward(self, maps: list[Tensor], pixel_padding: Tensor) -> TokenPyramid:
        """L maps (B, D, H_l, W_l) and the (B, H, W) pixel mask (True = padding) -> tokens."""
        dtype = maps[0].dtype
        # Coordinates in half precision would be off by whole pixels.
        coordinate_dtype = torch.promote_types(self.level_embeds.dtype, torch.float32)
        positions, masks, valid_sizes = [], [], []
        for level, x in enumerate(maps):
            mask = F.interpolate(pixel_padding[:, None].float(), size=x.shape[-2:])[:, 0] > 0.5
            position = self.position_encoding(mask, coordinate_dtype).to(dtype)
            positions.append((position + self.level_embeds[level].to(dtype)).flatten(1, 2))
            valid_sizes.append(torch.stack([(~mask[:, 0]).sum(1), (~mask[:, :, 0]).sum(1)], dim=-1))
            masks.append(mask.flatten(1))
        return TokenPyramid(
            features=flatten_maps(maps),
            positions=torch.cat(positions, dim=1),
            padding_mask=torch.cat(masks, dim=1),
            level_shapes=tuple((x.shape[-2], x.shape[-1]) for x in maps),
            valid_sizes=torch.stack(valid_sizes, dim=1).to(coordinate_dtype),
        )


def gather_tokens(tokens: Tensor, index: Tensor) -> Tensor:
    """(B, S, ...) and (B, n) -> (B, n, ...)."""
    return tokens[torch.arange(index.shape[0], device=index.device)[:, None], index]


def scatter_tokens(tokens: Tensor, index: Tensor, values: Tensor) -> Tensor:
    """A copy of (B, S, D) with (B, n, D) written at the distinct tokens (B, n)."""
    return tokens.scatter(1, index[..., None].expand_as(values), values.to(tokens.dtype))


class TokenProjection(nn.Module):
    """Linear and LayerNorm over tokens that are zeroed where their proposal is invalid."""

    def __init__(self, *, embed_dim: int = 256) -> None:
        super().__init__()
        self.linear = nn.Linear(embed_dim, embed_dim)
        self.norm = nn.LayerNorm(embed_dim)
        nn.init.xavier_uniform_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, tokens: Tensor, valid: Tensor) -> Tensor:
        """(B, S, D) and (B, S) True = valid -> (B, S, D)"""
        return self.norm(self.linear(tokens.masked_fill(~valid[..., None], 0)))
