"""Salience DETR as a detectron2 extension."""

from __future__ import annotations

import importlib.util
import sys
import warnings
from typing import TYPE_CHECKING

from salience_detr.utils.requirements import MissingDetectron2

# detectron2's own imports cause this warning on every start.
warnings.filterwarnings("ignore", message=r"`torch\.jit\.script` is deprecated")

if TYPE_CHECKING:
    from salience_detr.modeling import SalienceDETR
    from salience_detr.predictor import Predictor

__version__ = "0.1.0"
__all__ = ["Predictor", "SalienceDETR"]

# Every import of a part that needs it says how to install it.
if importlib.util.find_spec("detectron2") is None:
    sys.meta_path.insert(0, MissingDetectron2())


def __getattr__(name: str) -> type[Predictor | SalienceDETR]:
    """Import the heavy parts when they are first used.

    Raises:
        ImportError: detectron2 is not installed; says how to install it.
    """
    if name == "Predictor":
        from salience_detr.predictor import Predictor

        return Predictor

    if name == "SalienceDETR":
        from salience_detr.modeling import SalienceDETR

        return SalienceDETR

    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
