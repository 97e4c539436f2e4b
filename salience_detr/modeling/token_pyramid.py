"""Maps of all levels as one sequence of tokens, with the geometry of each token.

Symbols: B images, L levels of size (H_l, W_l), S = sum of H_l * W_l tokens, D channels.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from salience_detr.layers.position_encoding import SinePositionEncoding
from salience_detr.layers.transfer import to_device

# Output proposals of Deformable DETR (appendix A.4): the side of a box on the finest level, and the
# range that all four numbers of a valid proposal lie in.
PROPOSAL_SIDE = 0.05
PROPOSAL_RANGE = (0.01, 0.99)


@dataclass(frozen=True)
class TokenPyramid:
    """Tokens of a batch, flattened level by level (finest first) and row by row.

    Attributes:
        features: (B, S, D).
        positions: (B, S, D) sine encoding plus level embedding.
        padding_mask: (B, S) True = padding.
        spatial_shapes_list: (H_l, W_l) of each level as Python ints, for splits and reshapes.
        valid_sizes: (B, L, 2) unpadded (width, height) of each level in tokens, float32 at least.
    """

    features: Tensor
    positions: Tensor
    padding_mask: Tensor
    spatial_shapes_list: tuple[tuple[int, int], ...]
    valid_sizes: Tensor

    @cached_property
    def spatial_shapes(self) -> Tensor:
        """(L, 2) int64 (H_l, W_l) on the device, for the operator."""
        return to_device(self.spatial_shapes_list, self.features, torch.int64)

    @property
    def level_sizes(self) -> list[int]:
        """Number of tokens of each level, H_l * W_l."""
        return [height * width for height, width in self.spatial_shapes_list]

    @cached_property
    def level_start_index(self) -> Tensor:
        """(L,) int64 index of the first token of each level."""
        starts = itertools.accumulate(self.level_sizes[:-1], initial=0)
        return to_device(list(starts), self.features, torch.int64)

    @cached_property
    def token_level(self) -> Tensor:
        """(S,) int64 level of each token."""
        sizes = to_device(self.level_sizes, self.features, torch.int64)
        levels = torch.arange(len(sizes), device=sizes.device)
        return levels.repeat_interleave(sizes, output_size=sum(self.level_sizes))

    @cached_property
    def token_xy(self) -> Tensor:
        """(S, 2) int64 (column, row) of each token on its level."""
        grids = []
        for height, width in self.spatial_shapes_list:
            y = torch.arange(height, device=self.features.device)
            x = torch.arange(width, device=self.features.device)
            grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)  # (H, W, 2)
            grids.append(grid.flatten(0, 1))

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
    def output_proposals(self) -> Tensor:
        """(B, S, 4) normalized cxcywh box of each token: its center, sides of 0.05 * 2^level."""
        side = PROPOSAL_SIDE * 2.0 ** self.token_level.to(self.centers.dtype)  # (S,)
        sides = side[:, None].expand(-1, 2).expand_as(self.centers)
        return torch.cat([self.centers, sides], dim=-1)

    @cached_property
    def output_proposals_valid(self) -> Tensor:
        """(B, S) True where a token is unpadded and its proposal lies in (0.01, 0.99)."""
        low, high = PROPOSAL_RANGE
        inside = (self.output_proposals > low) & (self.output_proposals < high)
        return inside.all(-1) & ~self.padding_mask

    def with_geometry(self) -> TokenPyramid:
        """Return the pyramid with all that follows from its sizes computed.

        A stage that torch.compile compiles would be cut wherever it computed such a thing first.
        """
        for name, attribute in vars(TokenPyramid).items():
            if isinstance(attribute, cached_property):
                getattr(self, name)
        return self

    def split_levels(self, tokens: Tensor) -> list[Tensor]:
        """Split (B, S, ...) into L tensors (B, H_l * W_l, ...)."""
        return list(tokens.split(self.level_sizes, dim=1))

    def to_maps(self, tokens: Tensor) -> list[Tensor]:
        """Reshape (B, S, D) tokens into L maps (B, D, H_l, W_l)."""
        maps = []
        for level, shape in zip(self.split_levels(tokens), self.spatial_shapes_list, strict=True):
            maps.append(level.transpose(1, 2).unflatten(2, shape))
        return maps


class TokenPyramidBuilder(nn.Module):
    """Flattens the levels and gives each token its position, its level and its padding."""

    pyramid_class = TokenPyramid  # exported graphs have one of their own

    def __init__(self, *, embed_dim: int = 256, num_levels: int = 4) -> None:
        super().__init__()
        self.position_encoding = SinePositionEncoding(num_features=embed_dim // 2)

        self.level_embeds = nn.Parameter(torch.empty(num_levels, embed_dim))
        nn.init.normal_(self.level_embeds)

    def forward(self, maps: list[Tensor], pixel_padding: Tensor) -> TokenPyramid:
        """Flatten L maps (B, D, H_l, W_l), with the (B, H, W) pixel mask (True = padding)."""
        dtype = maps[0].dtype
        # Coordinates in half precision would be off by whole pixels.
        coordinate_dtype = torch.promote_types(self.level_embeds.dtype, torch.float32)

        padding_masks, valid_sizes = [], []
        for feature_map in maps:
            # The interpolation is "nearest": a token is padding if the pixel at its start is.
            resized = F.interpolate(pixel_padding[:, None].float(), size=feature_map.shape[-2:])
            padding = resized[:, 0] > 0.5

            # The unpadded part is a rectangle: its first row and column give its size.
            valid_width = (~padding[:, 0]).sum(1)
            valid_height = (~padding[:, :, 0]).sum(1)

            padding_masks.append(padding)
            valid_sizes.append(torch.stack([valid_width, valid_height], dim=-1))

        positions = self.position_encoding(padding_masks, coordinate_dtype).to(dtype)
        level_embeds = self.level_embeds.to(dtype).unbind()
        embeddings = []
        for feature_map, embedding in zip(maps, level_embeds, strict=True):
            height, width = feature_map.shape[-2:]
            embeddings.append(embedding.expand(height * width, -1))

        tokens = self.pyramid_class(
            features=flatten_maps(maps),
            positions=positions + torch.cat(embeddings),
            padding_mask=torch.cat([x.flatten(1) for x in padding_masks], dim=1),
            spatial_shapes_list=tuple((x.shape[-2], x.shape[-1]) for x in maps),
            valid_sizes=torch.stack(valid_sizes, dim=1).to(coordinate_dtype),
        )
        return tokens.with_geometry()


class TokenProjection(nn.Module):
    """Linear layer and LayerNorm over tokens, zeroed where their output proposal is invalid."""

    def __init__(self, *, embed_dim: int = 256) -> None:
        super().__init__()
        self.linear = nn.Linear(embed_dim, embed_dim)
        self.norm = nn.LayerNorm(embed_dim)

        nn.init.xavier_uniform_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, tokens: Tensor, valid: Tensor) -> Tensor:
        """(B, S, D) tokens and (B, S) True = valid -> (B, S, D)."""
        tokens = tokens.masked_fill(~valid[..., None], 0)
        return self.norm(self.linear(tokens))


def flatten_maps(maps: list[Tensor]) -> Tensor:
    """Flatten L maps (B, D, H_l, W_l) to (B, S, D); the inverse of :meth:`TokenPyramid.to_maps`."""
    return torch.cat([x.flatten(2).transpose(1, 2) for x in maps], dim=1)


def gather_tokens(tokens: Tensor, index: Tensor) -> Tensor:
    """Return the tokens (B, n, ...) of (B, S, ...) at the indices (B, n)."""
    image = torch.arange(index.shape[0], device=index.device)
    return tokens[image[:, None], index]


def scatter_tokens(tokens: Tensor, index: Tensor, values: Tensor) -> Tensor:
    """Return a copy of (B, S, D) tokens with (B, n, D) values at the distinct indices (B, n)."""
    return tokens.scatter(1, index[..., None].expand_as(values), values.to(tokens.dtype))
