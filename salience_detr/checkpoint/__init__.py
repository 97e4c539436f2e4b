"""Checkpoints: reading files, converting the weights of others, loading them into a model without silent gaps."""

from salience_detr.checkpoint import catalog as _catalog  # noqa: F401  (registers torchvision:// and timm:// paths)
from salience_detr.checkpoint.loading import (
    load_state_dict_strictly,
    load_weights,
    read_checkpoint,
    save_weights,
    start_from,
)
from salience_detr.checkpoint.reference_conversion import (
    COCO_CATEGORY_IDS,
    CheckpointError,
    convert_reference_checkpoint,
)

__all__ = [
    "COCO_CATEGORY_IDS",
    "CheckpointError",
    "convert_reference_checkpoint",
    "load_state_dict_strictly",
    "load_weights",
    "read_checkpoint",
    "save_weights",
    "start_from",
]
