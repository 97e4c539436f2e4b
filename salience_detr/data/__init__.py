"""Data sets, their registration, and the way from a record to the model's input."""

from salience_detr.data.augmentation import (
    RandomFlip,
    RandomHue,
    RandomQuarterTurn,
    ResizeScale,
    ResizeShortestEdge,
)
from salience_detr.data.coco_dataset import register_coco_dataset
from salience_detr.data.coco_format import DatasetError
from salience_detr.data.datasets import check_class_count, load_dataset
from salience_detr.data.images import ImageReadError, read_image
from salience_detr.data.loader import (
    DataWorkerError,
    batches,
    build_test_loader,
    build_train_loader,
)
from salience_detr.data.mapper import DetectionMapper
from salience_detr.data.surface.dataset import register_surface_defects

register_surface_defects()

__all__ = [
    "DataWorkerError",
    "DatasetError",
    "DetectionMapper",
    "ImageReadError",
    "RandomFlip",
    "RandomHue",
    "RandomQuarterTurn",
    "ResizeScale",
    "ResizeShortestEdge",
    "batches",
    "build_test_loader",
    "build_train_loader",
    "check_class_count",
    "load_dataset",
    "read_image",
    "register_coco_dataset",
    "register_surface_defects",
]
