"""Deformable attention of exported graphs, in operators that their runtimes have.

Symbols: B images, Q queries, L levels of S tokens in all, M heads of C channels, P points per head
and level.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from salience_detr.layers.ms_deform_attn import MultiScaleDeformableAttention


class GridSampleAttention(MultiScaleDeformableAttention):
    """Deformable attention by GridSample, for levels with unknown sides."""

    def sample(
        self,
        value: Tensor,
        spatial_shapes: Any,
        level_start_index: Any,
        reference_points: Tensor,
        sampling_offsets: Tensor,
        attention_logits: Tensor,
    ) -> Tensor:
        """Attend as ``ms_deform_attn_fused`` does; ``spatial_shapes`` are L pairs of numbers."""
        batch, _, heads, channels = value.shape
        queries = reference_points.shape[1]

        # Images and heads become one batch dimension, as grid_sample needs it.
        weights = attention_logits.flatten(-2).softmax(-1).view_as(attention_logits)
        maps = value.permute(0, 2, 3, 1).flatten(0, 1)  # (B * M, C, S)
        levels = maps.split([height * width for height, width in spatial_shapes], dim=2)

        output = value.new_zeros(batch * heads, channels, queries)
        for level, (height, width) in enumerate(spatial_shapes):
            locations = level_locations(
                reference_points[:, :, level], sampling_offsets[:, :, :, level], (height, width)
            )
            grids = (2 * locations - 1).permute(3, 0, 2, 1, 4).flatten(1, 2)  # (P, B * M, Q, 2)
            level_weights = weights[:, :, :, level].permute(3, 0, 2, 1).flatten(1, 2)
            feature_map = levels[level].unflatten(2, (height, width))

            # Point by point: OpenVINO takes more than twice as long over all at once, as it then
            # multiplies along the few points instead of the many queries.
            for grid, weight in zip(grids.unbind(), level_weights.unbind(), strict=True):
                samples = F.grid_sample(feature_map, grid[:, None], align_corners=False)
                output = output + samples[:, :, 0] * weight[:, None]
        return output.view(batch, heads * channels, queries).transpose(1, 2)


class GatherAttention(MultiScaleDeformableAttention):
    """Deformable attention by Gather and arithmetic, for runtimes without a good GridSample."""

    def sample(
        self,
        value: Tensor,
        spatial_shapes: Any,
        level_start_index: Any,
        reference_points: Tensor,
        sampling_offsets: Tensor,
        attention_logits: Tensor,
    ) -> Tensor:
        """Attend as ``ms_deform_attn_fused`` does; ``spatial_shapes`` are L pairs of numbers."""
        batch, _, heads, channels = value.shape
        queries = reference_points.shape[1]

        weights = attention_logits.flatten(-2).softmax(-1).view_as(attention_logits)
        levels = value.split([height * width for height, width in spatial_shapes], dim=1)

        output = value.new_zeros(batch, queries, heads, channels)
        for level, shape in enumerate(spatial_shapes):
            locations = level_locations(
                reference_points[:, :, level], sampling_offsets[:, :, :, level], shape
            )
            samples = gather_samples(levels[level], shape, locations)
            output = output + (samples * weights[:, :, :, level, :, None]).sum(-2)
        return output.flatten(2)


class OperatorAttention(MultiScaleDeformableAttention):
    """Deformable attention by the compiled operator, where this package runs beside the runtime."""

    def sample(
        self,
        value: Tensor,
        spatial_shapes: Any,
        level_start_index: Any,
        reference_points: Tensor,
        sampling_offsets: Tensor,
        attention_logits: Tensor,
    ) -> Tensor:
        """Attend as ``ms_deform_attn_fused`` does; ``spatial_shapes`` are L pairs of numbers."""
        sides = [torch.scalar_tensor(side, dtype=torch.int64) for x in spatial_shapes for side in x]
        shapes = torch.stack(sides).view(-1, 2)
        lengths = shapes.prod(-1)
        return torch.ops.salience_detr.ms_deform_attn_fused(
            value,
            shapes,
            lengths.cumsum(0) - lengths,
            reference_points,
            sampling_offsets,
            attention_logits,
        )


def level_locations(
    reference: Tensor, sampling_offsets: Tensor, spatial_shape: tuple[int, int]
) -> Tensor:
    """Return the sampling locations on a level, as ``sampling_locations_from_offsets`` does.

    Args:
        reference: (B, Q, 2 or 4), normalized by the padded map.
        sampling_offsets: (B, Q, M, P, 2).
        spatial_shape: (H, W).

    Returns:
        (B, Q, M, P, 2) as (x, y).
    """
    height, width = spatial_shape
    reference = reference[:, :, None, None]
    if reference.shape[-1] == 2:
        offset_x, offset_y = sampling_offsets.unbind(-1)
        return reference + torch.stack([offset_x / width, offset_y / height], dim=-1)

    num_points = sampling_offsets.shape[-2]
    shift = sampling_offsets / num_points * reference[..., 2:] * 0.5
    return reference[..., :2] + shift


def gather_samples(value: Tensor, spatial_shape: tuple[int, int], locations: Tensor) -> Tensor:
    """Sample a level bilinearly, with zeros outside, as grid_sample does (align_corners=False).

    Args:
        value: (B, H * W, M, C).
        spatial_shape: (H, W).
        locations: (B, Q, M, P, 2) as (x, y); 0 and 1 are the outer borders of the map.

    Returns:
        (B, Q, M, P, C)
    """
    height, width = spatial_shape
    batch, _, heads, channels = value.shape
    table = value.reshape(-1, channels)  # a row for each image, pixel and head
    image = torch.arange(batch, device=value.device)[:, None, None, None]
    head = torch.arange(heads, device=value.device)[:, None]

    x = locations[..., 0] * width - 0.5
    y = locations[..., 1] * height - 0.5
    left = x.floor()
    top = y.floor()

    output = value.new_zeros(*locations.shape[:-1], channels)
    for row, column in ((top, left), (top, left + 1), (top + 1, left), (top + 1, left + 1)):
        is_inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
        weight = (1 - (x - column).abs()) * (1 - (y - row).abs()) * is_inside

        pixel_row = row.clamp(min=0).clamp(max=height - 1).long()
        pixel_column = column.clamp(min=0).clamp(max=width - 1).long()
        pixel = (image * height + pixel_row) * width + pixel_column
        index = pixel * heads + head

        corner = table.index_select(0, index.flatten()).view_as(output)
        output = output + corner * weight[..., None]
    return output


SAMPLING: dict[str, type[nn.Module]] = {
    "grid_sample": GridSampleAttention,
    "gather": GatherAttention,
    "operator": OperatorAttention,
}
