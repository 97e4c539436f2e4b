"""Supervision of the salience scores by the ground-truth boxes (paper, section 3.2).

Symbols: B images, L levels of size (H_l, W_l), G = most boxes in an image of the batch.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from salience_detr.layers.losses import soft_focal_loss
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
        target_maps: list[Tensor],
        normalizers: LossNormalizers,
    ) -> dict[str, Tensor]:
        """Compute ``loss_salience``: the sum over all tokens divided by ``num_salient``.

        Args:
            score_maps: L maps (B, H_l, W_l) of logits over the padded batch.
            target_maps: what :meth:`targets` returns for them.
            normalizers: of the batch.
        """
        dtype = torch.promote_types(score_maps[0].dtype, torch.float32)
        logits = torch.cat([x.flatten(1) for x in score_maps], dim=1).to(dtype)
        target = torch.cat([x.flatten(1) for x in target_maps], dim=1).to(dtype)

        loss = soft_focal_loss(logits, target, alpha=self.alpha, gamma=self.gamma)

        return {"loss_salience": self.weight * (loss / normalizers.num_salient)}

    def targets(
        self,
        spatial_shapes_list: Sequence[tuple[int, int]],
        targets: DetectionTargets,
        padded_size: tuple[int, int],
    ) -> list[Tensor]:
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


def count_salient(target_maps: list[Tensor]) -> Tensor:
    """Return the () float64 number of tokens with a positive target, over all images."""
    return torch.stack([(x > 0).sum() for x in target_maps]).sum().double()


@torch.no_grad()
def salience_targets(
    spatial_shapes_list: Sequence[tuple[int, int]],
    targets: DetectionTargets,
    padded_size: tuple[int, int],
    level_ranges: Sequence[tuple[float, float]] = LEVEL_RANGES,
) -> list[Tensor]:
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
        L maps (B, H_l, W_l) in [0, 1].
    """
    boxes = targets.boxes_xyxy
    maps = []
    for shape, level_range in zip(spatial_shapes_list, level_ranges, strict=True):
        maps.append(_level_targets(boxes, shape, padded_size, level_range))
    return maps


def _level_targets(
    boxes: Tensor,
    shape: tuple[int, int],
    padded_size: tuple[int, int],
    level_range: tuple[float, float],
) -> Tensor:
    """Return the (B, H_l, W_l) targets of one level for (B, G, 4) boxes, absolute xyxy.

    Boxes without area, such as padding, contain no token.
    """
    height, width = shape
    if boxes.shape[1] == 0:
        return boxes.new_zeros(len(boxes), height, width)

    # Distances of the token centers to the four sides of each box.
    rows = torch.arange(height, device=boxes.device, dtype=boxes.dtype)
    columns = torch.arange(width, device=boxes.device, dtype=boxes.dtype)
    y = (rows + 0.5) * (padded_size[0] / height)
    x = (columns + 0.5) * (padded_size[1] / width)

    x0, y0, x1, y1 = boxes[..., None].unbind(2)  # (B, G, 1) each
    left = x - x0  # (B, G, W)
    right = x1 - x
    top = y - y0  # (B, G, H)
    bottom = y1 - y

    # (B, G, H, W): the token is inside the box, and the level is responsible for its distance.
    inside_y = (top > 0) & (bottom > 0)
    inside_x = (left > 0) & (right > 0)
    inside = inside_y[..., None] & inside_x[:, :, None]

    distance_y = torch.maximum(top, bottom)
    distance_x = torch.maximum(left, right)
    distance = torch.maximum(distance_y[..., None], distance_x[:, :, None])
    responsible = inside & (distance > level_range[0]) & (distance <= level_range[1])

    # 1 in the middle of a box, falling towards its sides, whatever its size (paper, section 3.2).
    dx2 = ((left - right) / (left + right)).square()
    dy2 = ((top - bottom) / (top + bottom)).square()
    centrality = 1 - (dx2[:, :, None] + dy2[..., None]).sqrt() / 2

    # Any box of the level's range makes a token positive; the largest value of all boxes counts.
    best = centrality.masked_fill(~inside, 0).amax(1)

    return best * responsible.any(1)
