"""The model in float64, for runs whose results are compared to the last digit that is printed."""

from __future__ import annotations

from typing import Any

from detectron2.layers import FrozenBatchNorm2d
from torch import nn

from salience_detr.modeling import SalienceDETR


def build_frozen_model(**parts: Any) -> nn.Module:
    """With fixed BatchNorm, so that no layer mixes the images of a batch."""
    return FrozenBatchNorm2d.convert_frozen_batchnorm(build_model(**parts))


def build_model(**parts: Any) -> SalienceDETR:
    return SalienceDETR(**parts).double()
