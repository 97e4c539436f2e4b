"""Supervision of the salience scores by the ground-truth boxes (paper, section 3.2).

Symbols: B images, L levels of size (H_l, W_l), S tokens of all levels, A = sum of H_l + W_l,
G = most boxes in an image of the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from salience_detr.layers.losses import soft_focal_loss
from salience_detr.layers.transfer import to_device
from salience_detr.modeling.structures import DetectionTargets, LossNormalizers

# Largest distance, in pixels, from a token to a side of a box that a level is responsible for:
# (above, up to].
LEVEL_RANGES = ((-1.0, 64.0), (64.0, 128.0), (128.0, 256.0), (256.0, 99999.0))


class SalienceCriterion(nn.Module):
    """Focal loss of the score maps of all levels, padding included, towards soft targets.

    Args:
        level_ranges: distances in pixels that each level is responsible for, see
            :func:`salience_targets`.
    """

    def __init__(
        self,
        *,
        weight: float = 2.0,
        alpha: float = 0.25,
        gamma: float = 2.0,
        level_ranges: Sequence[tuple[float, float]] = LEVEL_RANGES,
    ) -> None:
        super().__init__()
        self.weight = weight
        self.alpha = alpha
        self.gamma = gamma

        self.level_ranges = tuple((low, high) for low, high in level_ranges)

    def forward(
        self,
        score_maps: list[Tensor],
        target: Tensor,
        normalizers: LossNormalizers,
    ) -> dict[str, Tensor]:
        """Compute ``loss_salience``: the sum over all tokens divided by ``num_salient``.

        Args:
            score_maps: L maps (B, H_l, W_l) of logits over the padded batch.
            target: (B, S), what :meth:`targets` returns for them.
            normalizers: of the batch.
        """
        dtype = torch.promote_types(score_maps[0].dtype, torch.float32)
        logits = torch.cat([x.flatten(1) for x in score_maps], dim=1).to(dtype)

        loss = soft_focal_loss(logits, target.to(dtype), alpha=self.alpha, gamma=self.gamma)

        return {"loss_salience": self.weight * (loss / normalizers.num_salient)}

    def targets(
        self,
        spatial_shapes_list: Sequence[tuple[int, int]],
        targets: DetectionTargets,
        padded_size: tuple[int, int],
    ) -> Tensor:
        """Compute :func:`salience_targets` with the ranges of the levels.

        Raises:
            ValueError: there are not as many levels as ``level_ranges``.
        """
        if len(spatial_shapes_list) != len(self.level_ranges):
            raise ValueError(
                f"there are {len(spatial_shapes_list)} levels but {len(self.level_ranges)} "
                "level_ranges; give model.salience_criterion.level_ranges one range per level"
            )
        return salience_targets(spatial_shapes_list, targets, padded_size, self.level_ranges)


def count_salient(target: Tensor) -> Tensor:
    """Return the () float64 number of tokens with a positive target, over all images."""
    return (target > 0).sum().double()


@torch.no_grad()
def salience_targets(
    spatial_shapes_list: Sequence[tuple[int, int]],
    targets: DetectionTargets,
    padded_size: tuple[int, int],
    level_ranges: Sequence[tuple[float, float]] = LEVEL_RANGES,
) -> Tensor:
    """Compute how central each token lies in a box.

    A token lies at ((column, row) + 0.5) * stride, stride = ``padded_size`` / map size. It has a
    target if it lies strictly inside a box whose largest side distance is in the range of its
    level. The target is then the largest 1 - sqrt(dx^2 + dy^2) / 2 over all boxes that contain it,
    where dx = (left - right) / (left + right) of the distances to the sides, and dy likewise.

    Args:
        spatial_shapes_list: (H_l, W_l) of each level.
        targets: ground truth of B images.
        padded_size: (height, width) of the padded batch in pixels.
        level_ranges: (above, up to] in pixels for each level.

    Returns:
        (B, S) in [0, 1], the tokens of all levels.
    """
    boxes = targets.boxes_xyxy
    if targets.max_boxes == 0:
        num_tokens = sum(height * width for height, width in spatial_shapes_list)
        return boxes.new_zeros(len(boxes), num_tokens)

    # Distances of the rows and columns of all levels to both sides of each box, (B, G, A).
    position, axis = _rows_and_columns(spatial_shapes_list, padded_size, boxes.dtype)
    axis = axis.to(boxes.device, non_blocking=True)
    sides = boxes.unflatten(-1, (2, 2)).index_select(-1, axis)  # (B, G, 2, A)
    low, high = sides.unbind(2)
    position = position.to(boxes.device, non_blocking=True)
    before = position - low
    after = high - position

    # Boxes without area, such as padding, contain no token.
    inside = (before > 0) & (after > 0)
    largest = torch.maximum(before, after)
    offset2 = ((before - after) / (before + after)).square()

    # A token belongs to a row and a column of its level, (B, G, S).
    inside = _of_tokens(inside, spatial_shapes_list, torch.logical_and)
    distance = _of_tokens(largest, spatial_shapes_list, torch.maximum)
    offset = _of_tokens(offset2, spatial_shapes_list, torch.add).sqrt()

    # 1 in the middle of a box, falling towards its sides, whatever its size (paper, section 3.2).
    centrality = 1 - offset / 2

    # Any box of the level's range makes a token positive; the largest value of all boxes counts.
    above, up_to = _token_ranges(spatial_shapes_list, level_ranges, boxes)
    responsible = inside & (distance > above) & (distance <= up_to)
    best = centrality.masked_fill(~inside, 0).amax(1)

    return best * responsible.any(1)


def _rows_and_columns(
    spatial_shapes_list: Sequence[tuple[int, int]],
    padded_size: tuple[int, int],
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """Return the pixel positions of the rows and columns of each level, on the CPU.

    Returns:
        (A,) positions, the rows before the columns of a level, and their (A,) axis: 1 for rows (y),
        0 for columns (x).
    """
    positions, axes = [], []
    for shape in spatial_shapes_list:
        for axis, size, padded in zip((1, 0), shape, padded_size, strict=True):
            number = torch.arange(size, dtype=dtype)
            positions.append((number + 0.5) * (padded / size))
            axes.append(torch.full((size,), axis))
    return torch.cat(positions), torch.cat(axes)


def _of_tokens(
    values: Tensor,
    spatial_shapes_list: Sequence[tuple[int, int]],
    combine: Callable[[Tensor, Tensor], Tensor],
) -> Tensor:
    """Combine the values (B, G, A) of rows and columns to those of the tokens, (B, G, S)."""
    sizes = [size for shape in spatial_shapes_list for size in shape]
    parts = values.split(sizes, dim=-1)

    tokens = []
    for rows, columns in zip(parts[::2], parts[1::2], strict=True):
        tokens.append(combine(rows[..., None], columns[..., None, :]).flatten(-2))
    return torch.cat(tokens, dim=-1)


def _token_ranges(
    spatial_shapes_list: Sequence[tuple[int, int]],
    level_ranges: Sequence[tuple[float, float]],
    like: Tensor,
) -> Tensor:
    """Return (2, S): the range of the level of each token."""
    ranges = to_device(level_ranges, like)
    levels = []
    for level, (height, width) in zip(ranges, spatial_shapes_list, strict=True):
        levels.append(level[:, None].expand(-1, height * width))
    return torch.cat(levels, dim=-1)
