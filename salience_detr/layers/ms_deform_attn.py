"""Multi-scale deformable attention (Deformable DETR, section 4.1).

Symbols: B images, Q queries, S value tokens of L levels, M heads of C channels, P points per head and level.
"""

from __future__ import annotations

import math
from typing import Any

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
    """Weighted sum of bilinear samples, in plain PyTorch: readable, on any device, and slow.

    A location (x, y) in [0, 1] reads pixel (x * W - 0.5, y * H - 0.5) of its level; outside the map there are zeros,
    also where a location is not finite.

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
    queries, points = sampling_locations.shape[1], sampling_locations.shape[4]
    dtype = torch.promote_types(value.dtype, torch.float32)
    shapes = [(int(h), int(w)) for h, w in spatial_shapes.tolist()]
    maps = value.to(dtype).permute(0, 2, 3, 1).flatten(0, 1)  # (B*M, C, S)
    # What is not finite lies outside.
    locations = torch.where(sampling_locations.abs() < 1e6, sampling_locations, -1).to(dtype)
    grids = (2 * locations - 1).transpose(1, 2).flatten(0, 1)  # (B*M, Q, L, P, 2)
    weights = attention_weights.to(dtype).transpose(1, 2).flatten(0, 1)  # (B*M, Q, L, P)
    output = maps.new_zeros(batch * heads, channels, queries)
    for level, (feature_map, (height, width)) in enumerate(
        zip(maps.split([h * w for h, w in shapes], dim=2), shapes, strict=True)
    ):
        if height * width == 0:
            continue
        samples = F.grid_sample(
            feature_map.unflatten(2, (height, width)),
            grids[:, :, level],
            mode="bilinear",
            padding_mode="zeros",
            align_corners=False,
        )  # (B*M, C, Q, P)
        output = output + (samples * weights[:, None, :, level]).sum(-1) if points else output
    return output.view(batch, heads * channels, queries).transpose(1, 2).to(value.dtype)


def sampling_locations_from_offsets(
    reference_points: Tensor, sampling_offsets: Tensor, spatial_shapes: Tensor
) -> Tensor:
    """Where each point samples, given the reference of its query.

    A 2-d reference (x, y) is shifted by offset / (W, H); a 4-d one (cx, cy, w, h) by offset / P * (w, h) / 2.

    Args:
        reference_points: (B, Q, L or 1, 2 or 4), normalized by the padded map of each level.
        sampling_offsets: (B, Q, M, L, P, 2).
        spatial_shapes: (L, 2) integers (H, W).

    Returns:
        (B, Q, M, L, P, 2) in the dtype of ``reference_points``.
    """
    reference = reference_points[:, :, None, :, None, :]
    offsets = sampling_offsets.to(reference.dtype)
    if reference.shape[-1] == 2:
        # A level without tokens gives nothing, whatever the location; only a division by zero would do harm.
        sizes = spatial_shapes.flip(-1).clamp(min=1).to(reference.dtype)
        return reference + offsets / sizes[:, None, :]
    if reference.shape[-1] == 4:
        return reference[..., :2] + offsets / offsets.shape[4] * reference[..., 2:] * 0.5
    raise ValueError(
        f"reference_points must have 2 or 4 coordinates in their last dimension, got {reference.shape[-1]}"
    )


def ms_deform_attn_fused_reference(
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    reference_points: Tensor,
    sampling_offsets: Tensor,
    attention_logits: Tensor,
) -> Tensor:
    """The chain that :func:`ms_deform_attn_fused` computes in one go, in plain PyTorch."""
    locations = sampling_locations_from_offsets(reference_points, sampling_offsets, spatial_shapes)
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
    """Multi-scale deformable attention; see :func:`ms_deform_attn_reference` for shapes and meaning.

    Runs ``torch.ops.salience_detr.ms_deform_attn`` where it is compiled for the device, else the PyTorch form. The
    operator wants ``sampling_locations`` in float32 (float64 with a float64 value), whatever the value's type is, and
    the other tensors in the value's type or in float32.

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
    """The same attention from what the linear layers give: locations and softmax over L * P are computed inside.

    Args:
        value: (B, S, M, C).
        spatial_shapes: (L, 2) integers (H, W).
        level_start_index: (L,).
        reference_points: (B, Q, L or 1, 2 or 4), float32 (float64 with a float64 value).
        sampling_offsets: (B, Q, M, L, P, 2), in pixels (2-d) or in half boxes / P (4-d).
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
    """Each query samples P points per head and level of the value maps around its reference."""

    def __init__(
        self, *, embed_dim: int = 256, num_heads: int = 8, num_levels: int = 4, num_points: int = 4
    ) -> None:
        super().__init__()
        if embed_dim % num_heads:
            raise ValueError(
                f"embed_dim ({embed_dim}) must be divisible by num_heads ({num_heads})"
            )
        self.num_heads, self.num_levels, self.num_points = num_heads, num_levels, num_points
        self.sampling_offsets = nn.Linear(embed_dim, num_heads * num_levels * num_points * 2)
        self.attention_weights = nn.Linear(embed_dim, num_heads * num_levels * num_points)
        self.value_proj = nn.Linear(embed_dim, embed_dim)
        self.output_proj = nn.Linear(embed_dim, embed_dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Heads start looking in evenly spread directions, point p at p + 1 pixels, all with equal weight."""
        angles = torch.arange(self.num_heads) * (2 * math.pi / self.num_heads)
        directions = torch.stack([angles.cos(), angles.sin()], dim=-1)
        directions = directions / directions.abs().amax(-1, keepdim=True)
        steps = torch.arange(1, self.num_points + 1)
        offsets = directions[:, None, None] * steps[:, None]
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(offsets.expand(-1, self.num_levels, -1, -1).flatten())
        for zeroed in (
            self.sampling_offsets.weight,
            self.attention_weights.weight,
            self.attention_weights.bias,
        ):
            nn.init.zeros_(zeroed)
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
        batch, queries, _ = query.shape
        projected = self.value_proj(value)
        if padding_mask is not None:
            projected = projected.masked_fill(padding_mask[..., None], 0)
        samples = (self.num_heads, self.num_levels, self.num_points)
        output = self.sample(
            projected.view(batch, projected.shape[1], self.num_heads, -1),
            spatial_shapes,
            level_start_index,
            # Never less than single precision, also under autocast.
            reference_points.to(torch.promote_types(projected.dtype, torch.float32)),
            self.sampling_offsets(query).view(batch, queries, *samples, 2),
            self.attention_weights(query).view(batch, queries, *samples),
        )
        return self.output_proj(output)

    def sample(self, *tensors: Any) -> Tensor:
        """The attention proper; see :func:`ms_deform_attn_fused`."""
        return ms_deform_attn_fused(*tensors)
