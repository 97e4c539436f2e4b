"""Supervision of the salience scores by the ground-truth boxes (paper, section 3.2).

Symbols: B images, L levels of size (H_l, W_l), G boxes of an image.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from salience_detr.layers.losses import soft_focal_loss
from salience_detr.modeling.distributed import mean_count
from salience_detr.modeling.structures import DetectionTargets

# Largest distance, in pixels, from a token to a side of a box that the level is responsible for: (above, up to].
LEVEL_RANGES = ((-1.0, 64.0), (64.0, 128.0), (128.0, 256.0), (256.0, 99999.0))


class SalienceCriterion(nn.Module):
    """Focal loss of the score maps of all levels, padding included, towards soft targets."""

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
        targets: list[DetectionTargets],
        padded_size: tuple[int, int],
        *,
        num_salient: float | None = None,
    ) -> dict[str, Tensor]:
        """L maps (B, H_l, W_l) of logits over an image of ``padded_size`` (height, width) -> ``loss_salience``.

        The sum over all tokens is divided by ``num_salient``, by default the number of tokens with a positive target
        (mean over the processes), at least 1.

        Raises:
            ValueError: there are not as many levels as ``level_ranges``.
        """
        if len(score_maps) != len(self.level_ranges):
            raise ValueError(
                f"there are {len(score_maps)} levels but {len(self.level_ranges)} level_ranges"
            )
        shapes = [(x.shape[1], x.shape[2]) for x in score_maps]
        wanted = salience_targets(shapes, targets, padded_size, self.level_ranges)
        dtype = torch.promote_types(score_maps[0].dtype, torch.float32)
        logits = torch.cat([x.flatten(1) for x in score_maps], dim=1).to(dtype)
        target = torch.cat([x.flatten(1) for x in wanted], dim=1).to(dtype)
        divisor = mean_count((target > 0).sum().to(dtype)) if num_salient is None else num_salient
        loss = soft_focal_loss(logits, target, alpha=self.alpha, gamma=self.gamma) / divisor
        return {"loss_salience": self.weight * loss}

    def count_salient(
        self,
        level_shapes: Sequence[tuple[int, int]],
        targets: list[DetectionTargets],
        padded_size: tuple[int, int],
    ) -> Tensor:
        """() float64 number of tokens with a positive target on levels of (H_l, W_l)."""
        wanted = salience_targets(level_shapes, targets, padded_size, self.level_ranges)
        return torch.stack([(x > 0).sum() for x in wanted]).sum().double()


@torch.no_grad()
def salience_targets(
    level_shapes: Sequence[tuple[int, int]],
    targets: list[DetectionTargets],
    padded_size: tuple[int, int],
    level_ranges: Sequence[tuple[float, float]] = LEVEL_RANGES,
) -> list[Tensor]:
    """How central each token lies in a box: L maps (B, H_l, W_l) in [0, 1].

    A token lies at ((column, row) + 0.5) * stride, stride = ``padded_size`` / map size. It has a target if it lies
    strictly inside a box whose largest side distance is in the range of its level; the target is then the largest
    1 - sqrt(dx^2 + dy^2) / 2 over all boxes that contain it, dx = (left - right) / (left + right), dy likewise.

    Args:
        level_shapes: (H_l, W_l) of each level.
        targets: of B images.
        padded_size: (height, width) of the padded batch in pixels.
        level_ranges: (above, up to] in pixels for each level.
    """
    maps = []
    for (height, width), level_range in zip(level_shapes, level_ranges, strict=True):
        images = [
            _image_targets(target.boxes_xyxy, height, width, padded_size, level_range)
            for target in targets
        ]
        maps.append(torch.stack(images))
    return maps


def _image_targets(
    boxes: Tensor,
    height: int,
    width: int,
    padded_size: tuple[int, int],
    level_range: tuple[float, float],
) -> Tensor:
    """(G, 4) boxes, absolute xyxy -> (height, width) targets of one level."""
    if len(boxes) == 0:
        return boxes.new_zeros(height, width)
    y = (torch.arange(height, device=boxes.device, dtype=boxes.dtype) + 0.5) * (
        padded_size[0] / height
    )
    x = (torch.arange(width, device=boxes.device, dtype=boxes.dtype) + 0.5) * (
        padded_size[1] / width
    )
    x0, y0, x1, y1 = boxes[:, :, None].unbind(1)  # (G, 1) each
    left, right = x - x0, x1 - x  # (G, W)
    top, bottom = y - y0, y1 - y  # (G, H)
    inside = ((top > 0) & (bottom > 0))[:, :, None] & ((left > 0) & (right > 0))[
        :, None
    ]  # (G, H, W)
    largest = torch.maximum(
        torch.maximum(top, bottom)[:, :, None], torch.maximum(left, right)[:, None]
    )
    responsible = inside & (largest > level_range[0]) & (largest <= level_range[1])
    dx2 = ((left - right) / (left + right)).square()
    dy2 = ((top - bottom) / (top + bottom)).square()
    centrality = 1 - (dx2[:, None] + dy2[:, :, None]).sqrt() / 2
    best = centrality.masked_fill(~inside, 0).amax(0)
    return best * responsible.any(0)
