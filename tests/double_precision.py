"""The model in float64, for runs whose results are compared to the last digit that is printed."""

from __future__ import annotations

from typing import Any

from salience_detr.modeling import SalienceDETR


def build_model(**parts: Any) -> SalienceDETR:
    return SalienceDETR(**parts).double()
