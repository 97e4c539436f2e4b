"""Classification losses on logits."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def iou_aware_class_loss(
    logits: Tensor, targets: Tensor, positive: Tensor, *, alpha: float = 0.75, gamma: float = 2.0
) -> Tensor:
    """Compute a varifocal-style loss: binary cross entropy towards the IoU, weighted by it.

    w * BCE(p, t) of each element, with w = t where ``positive`` and w = alpha * p^gamma elsewhere;
    w carries no gradient.

    Args:
        logits: any shape.
        targets: same shape, t in [0, 1], detached: the IoU of a matched prediction at its class,
            0 elsewhere.
        positive: same shape, True where matched.

    Returns:
        The same shape, not summed.
    """
    background = alpha * logits.detach().sigmoid() ** gamma
    weight = torch.where(positive, targets, background)

    return F.binary_cross_entropy_with_logits(logits, targets, weight=weight, reduction="none")


class MatchabilityAwareLoss:
    """The matchability-aware class loss of DEIM (Huang et al., CVPR 2025, section 3.3).

    BCE(p, t^gamma) where matched, whatever the IoU t, and p^gamma * BCE(p, 0) elsewhere; the factor
    carries no gradient. A match of low IoU has more weight than in :func:`iou_aware_class_loss`.

    Args:
        gamma: exponent of the IoU and of the background's probability.
    """

    def __init__(self, *, gamma: float = 1.5) -> None:
        self.gamma = gamma

    def __call__(self, logits: Tensor, targets: Tensor, positive: Tensor) -> Tensor:
        """Compute the loss of each element; see :func:`iou_aware_class_loss` for the arguments."""
        background = logits.detach().sigmoid() ** self.gamma
        weight = torch.where(positive, 1.0, background)

        return F.binary_cross_entropy_with_logits(
            logits, targets**self.gamma, weight=weight, reduction="none"
        )


def soft_focal_loss(
    logits: Tensor, targets: Tensor, *, alpha: float = 0.25, gamma: float = 2.0
) -> Tensor:
    """Compute the focal loss towards soft targets t, summed over all elements.

    w * BCE(p, t), with w = (1 - alpha) * p^gamma * (1 - t) + alpha * t * (1 - p)^gamma;
    gradient flows through w.

    Args:
        logits: any shape.
        targets: same shape, in [0, 1].
    """
    p = logits.sigmoid()
    weight = (1 - alpha) * p**gamma * (1 - targets) + alpha * targets * (1 - p) ** gamma

    cross_entropy = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    return (weight * cross_entropy).sum()
