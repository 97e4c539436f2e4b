"""Multi-scale deformable attention (Deformable DETR, section 4.1).

Two operators: the plain one takes sampling locations and attention weights, the fused one the
outputs of the linear layers. Each has a PyTorch reference, which runs where no compiled one is.

Symbols: B images, Q queries, S value tokens of L levels, M heads of C channels, P points per head
and level.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from salience_detr.layers.operator import is_compiled_for


def ms_deform_attn_reference(
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    """Compute the weighted sum of bilinear samples in plain PyTorch: readable, and slow.

    A location (x, y) in [0, 1] reads pixel (x * W - 0.5, y * H - 0.5) of its level. Outside of the
    map there are zeros, also where a location is not finite.

    Args:
        value: (B, S, M, C).
        spatial_shapes: (L, 2) integers (H, W), whose products sum to S.
        level_start_index: (L,) index of the first token of each level.
        sampling_locations: (B, Q, M, L, P, 2) as (x, y), normalized by the padded map.
        attention_weights: (B, Q, M, L, P).

    Returns:
        (B, Q, M * C) in the dtype of ``value``; sampling and sums are done in float32 at least.
    """
    batch, _, heads, channels = value.shape
    num_queries = sampling_locations.shape[1]
    dtype = torch.promote_types(value.dtype, torch.float32)

    # Images and heads become one batch dimension, as grid_sample needs it.
    maps = value.to(dtype).permute(0, 2, 3, 1).flatten(0, 1)  # (B * M, C, S)
    weights = attention_weights.to(dtype).transpose(1, 2).flatten(0, 1)  # (B * M, Q, L, P)

    # grid_sample's coordinates lie in [-1, 1]; locations that are not finite are put outside.
    locations = torch.where(sampling_locations.abs() < 1e6, sampling_locations, -1).to(dtype)
    grids = (2 * locations - 1).transpose(1, 2).flatten(0, 1)  # (B * M, Q, L, P, 2)

    shapes = [(int(height), int(width)) for height, width in spatial_shapes.tolist()]
    levels = maps.split([height * width for height, width in shapes], dim=2)

    output = maps.new_zeros(batch * heads, channels, num_queries)
    for level, (height, width) in enumerate(shapes):
        # grid_sample refuses empty maps, which add nothing.
        if height * width == 0:
            continue

        samples = F.grid_sample(
            levels[level].unflatten(2, (height, width)),
            grids[:, :, level],
            mode="bilinear",
            padding_mode="zeros",
            align_corners=False,
        )  # (B * M, C, Q, P)
        output = output + (samples * weights[:, None, :, level]).sum(-1)

    return output.view(batch, heads * channels, num_queries).transpose(1, 2).to(value.dtype)


def sampling_locations_from_offsets(
    reference_points: Tensor, sampling_offsets: Tensor, spatial_shapes: Tensor
) -> Tensor:
    """Compute the sampling locations from the reference points and offsets of the queries.

    A reference (x, y) is shifted by offset / (W, H); a reference (cx, cy, w, h) by
    offset / P * (w, h) / 2.

    Args:
        reference_points: (B, Q, L or 1, 2 or 4), normalized by the padded map of each level.
        sampling_offsets: (B, Q, M, L, P, 2).
        spatial_shapes: (L, 2) integers (H, W).

    Returns:
        (B, Q, M, L, P, 2) in the dtype of ``reference_points``.

    Raises:
        ValueError: a reference has neither 2 nor 4 coordinates.
    """
    reference = reference_points[:, :, None, :, None, :]
    offsets = sampling_offsets.to(reference.dtype)

    if reference.shape[-1] == 2:
        # A level without tokens gives nothing, wherever it is sampled; avoid the division by zero.
        sizes = spatial_shapes.flip(-1).clamp(min=1).to(reference.dtype)
        return reference + offsets / sizes[:, None, :]
    if reference.shape[-1] == 4:
        return reference[..., :2] + offsets / offsets.shape[4] * reference[..., 2:] * 0.5

    raise ValueError(
        "reference_points must have 2 or 4 coordinates in their last dimension, got "
        f"{reference.shape[-1]}"
    )


def ms_deform_attn_fused_reference(
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    reference_points: Tensor,
    sampling_offsets: Tensor,
    attention_logits: Tensor,
) -> Tensor:
    """Compute :func:`ms_deform_attn_fused` step by step in plain PyTorch."""
    locations = sampling_locations_from_offsets(reference_points, sampling_offsets, spatial_shapes)

    # The softmax of a head is over the points of all levels.
    logits = attention_logits.to(torch.promote_types(attention_logits.dtype, torch.float32))
    weights = logits.flatten(-2).softmax(-1).view_as(logits)

    return ms_deform_attn_reference(value, spatial_shapes, level_start_index, locations, weights)


def ms_deform_attn(
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    """Attend by sampling locations and weights, shapes as in :func:`ms_deform_attn_reference`.

    Runs ``torch.ops.salience_detr.ms_deform_attn`` where it is compiled for the device, else the
    reference. The operator takes ``sampling_locations`` in float32 (float64 with a float64 value)
    whatever the type of the value, and the other tensors in the value's type or float32.

    Raises:
        RuntimeError: sizes, types or devices do not fit together.
    """
    if is_compiled_for(value.device.type):
        return torch.ops.salience_detr.ms_deform_attn(
            value, spatial_shapes, level_start_index, sampling_locations, attention_weights
        )
    return ms_deform_attn_reference(
        value, spatial_shapes, level_start_index, sampling_locations, attention_weights
    )


def ms_deform_attn_fused(
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    reference_points: Tensor,
    sampling_offsets: Tensor,
    attention_logits: Tensor,
) -> Tensor:
    """Attend by reference points, offsets and logits; locations and softmax over L * P are inside.

    Args:
        value: (B, S, M, C).
        spatial_shapes: (L, 2) integers (H, W).
        level_start_index: (L,).
        reference_points: (B, Q, L or 1, 2 or 4), float32 (float64 with a float64 value).
        sampling_offsets: (B, Q, M, L, P, 2), in pixels of the level for references of 2 numbers, in
            half boxes divided by P for references of 4.
        attention_logits: (B, Q, M, L, P), before the softmax.

    Returns:
        (B, Q, M * C) in the dtype of ``value``.

    Raises:
        RuntimeError: sizes, types or devices do not fit together.
    """
    if is_compiled_for(value.device.type):
        return torch.ops.salience_detr.ms_deform_attn_fused(
            value,
            spatial_shapes,
            level_start_index,
            reference_points,
            sampling_offsets,
            attention_logits,
        )

    return ms_deform_attn_fused_reference(
        value,
        spatial_shapes,
        level_start_index,
        reference_points,
        sampling_offsets,
        attention_logits,
    )


class MultiScaleDeformableAttention(nn.Module):
    """Attention of each query to P points per head and level around its reference.

    Raises:
        ValueError: ``embed_dim`` is no multiple of ``num_heads``.
    """

    def __init__(
        self, *, embed_dim: int = 256, num_heads: int = 8, num_levels: int = 4, num_points: int = 4
    ) -> None:
        super().__init__()

        if embed_dim % num_heads:
            raise ValueError(
                f"embed_dim ({embed_dim}) must be divisible by num_heads ({num_heads})"
            )

        self.num_heads = num_heads
        self.num_levels = num_levels
        self.num_points = num_points

        self.sampling_offsets = nn.Linear(embed_dim, num_heads * num_levels * num_points * 2)
        self.attention_weights = nn.Linear(embed_dim, num_heads * num_levels * num_points)
        self.value_proj = nn.Linear(embed_dim, embed_dim)
        self.output_proj = nn.Linear(embed_dim, embed_dim)

        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Let each head look in its own direction, point p at p + 1 pixels, with equal weights."""
        angles = torch.arange(self.num_heads) * (2 * math.pi / self.num_heads)
        directions = torch.stack([angles.cos(), angles.sin()], dim=-1)
        directions = directions / directions.abs().amax(-1, keepdim=True)

        steps = torch.arange(1, self.num_points + 1)
        offsets = directions[:, None, None] * steps[:, None]  # (M, 1, P, 2)
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(offsets.expand(-1, self.num_levels, -1, -1).flatten())

        # The start does not depend on the query.
        nn.init.zeros_(self.sampling_offsets.weight)
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.zeros_(self.attention_weights.bias)

        for projection in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(projection.weight)
            nn.init.zeros_(projection.bias)

    def forward(
        self,
        query: Tensor,
        reference_points: Tensor,
        value: Tensor,
        *,
        spatial_shapes: Tensor,
        level_start_index: Tensor,
        padding_mask: Tensor | None = None,
    ) -> Tensor:
        """Attend from the queries to the value tokens.

        Args:
            query: (B, Q, D), with the position added.
            reference_points: (B, Q, L or 1, 2 or 4), normalized by the padded map of each level.
            value: (B, S, D), not projected.
            spatial_shapes: (L, 2) integers (H, W).
            level_start_index: (L,).
            padding_mask: (B, S), True = padding, whose projected value is zero.

        Returns:
            (B, Q, D)
        """
        batch, num_queries, _ = query.shape

        projected = self.value_proj(value)
        if padding_mask is not None:
            projected = projected.masked_fill(padding_mask[..., None], 0)

        # Coordinates never have less than single precision, also under autocast.
        reference_dtype = torch.promote_types(projected.dtype, torch.float32)
        reference_points = reference_points.to(reference_dtype)

        samples = (batch, num_queries, self.num_heads, self.num_levels, self.num_points)
        output = self.sample(
            projected.unflatten(-1, (self.num_heads, -1)),
            spatial_shapes,
            level_start_index,
            reference_points,
            self.sampling_offsets(query).view(*samples, 2),
            self.attention_weights(query).view(samples),
        )

        return self.output_proj(output)

    def sample(
        self,
        value: Tensor,
        spatial_shapes: Tensor,
        level_start_index: Tensor,
        reference_points: Tensor,
        sampling_offsets: Tensor,
        attention_logits: Tensor,
    ) -> Tensor:
        """Run the operator; a method of its own because exported graphs replace it."""
        return ms_deform_attn_fused(
            value,
            spatial_shapes,
            level_start_index,
            reference_points,
            sampling_offsets,
            attention_logits,
        )
