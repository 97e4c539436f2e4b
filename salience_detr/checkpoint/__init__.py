"""Checkpoints: files, conversion of the weights of others, and strict loading into a model."""

from salience_detr.checkpoint import catalog as _catalog  # noqa: F401  (registers its paths)
from salience_detr.checkpoint.errors import CheckpointError
from salience_detr.checkpoint.files import read_checkpoint, save_weights
from salience_detr.checkpoint.loading import (
    load_state_dict_strictly,
    load_weights,
    read_classes,
    read_thresholds,
    start_from,
)
from salience_detr.checkpoint.reference_conversion import (
    COCO_CATEGORY_IDS,
    convert_reference_checkpoint,
)
from salience_detr.checkpoint.score_thresholds import ScoreThresholds

__all__ = [
    "COCO_CATEGORY_IDS",
    "CheckpointError",
    "ScoreThresholds",
    "convert_reference_checkpoint",
    "load_state_dict_strictly",
    "load_weights",
    "read_checkpoint",
    "read_classes",
    "read_thresholds",
    "save_weights",
    "start_from",
]
