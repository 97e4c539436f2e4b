"""Salience DETR as a detectron2 extension."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

# detectron2's own imports cause this warning on every start.
warnings.filterwarnings("ignore", message=r"`torch\.jit\.script` is deprecated")

try:
    import detectron2  # noqa: F401
except ImportError as error:
    raise ImportError(
        "salience_detr needs detectron2, which is not on the package index; "
        "install it with: python tools/install_detectron2.py "
        "(in the project's folder; 'make setup' does it too)"
    ) from error

if TYPE_CHECKING:
    from salience_detr.modeling import SalienceDETR
    from salience_detr.predictor import Predictor

__version__ = "0.1.0"
__all__ = ["Predictor", "SalienceDETR"]


def __getattr__(name: str) -> type[Predictor | SalienceDETR]:
    """Import the heavy parts when they are first used."""
    if name == "Predictor":
        from salience_detr.predictor import Predictor

        return Predictor

    if name == "SalienceDETR":
        from salience_detr.modeling import SalienceDETR

        return SalienceDETR

    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
