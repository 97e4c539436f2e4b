"""Data sets, their registration, and the way from a record to the model's input."""

from salience_detr.data.augmentation import (
    Albumentations,
    LimitSide,
    RandomFlip,
    RandomHue,
    RandomIoUCrop,
    RandomQuarterTurn,
    RandomZoomOut,
    ResizeScale,
    ResizeShortestEdge,
    SanitizeBoxes,
    TorchvisionAugmentation,
)
from salience_detr.data.augmentation.copy_paste import CopyPaste
from salience_detr.data.augmentation.multi_image import MixUp, Mosaic
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
from salience_detr.data.mixing import MixingMapper
from salience_detr.data.surface.dataset import register_surface_defects

register_surface_defects()

__all__ = [
    "Albumentations",
    "CopyPaste",
    "DataWorkerError",
    "DatasetError",
    "DetectionMapper",
    "ImageReadError",
    "LimitSide",
    "MixUp",
    "MixingMapper",
    "Mosaic",
    "RandomFlip",
    "RandomHue",
    "RandomIoUCrop",
    "RandomQuarterTurn",
    "RandomZoomOut",
    "ResizeScale",
    "ResizeShortestEdge",
    "SanitizeBoxes",
    "TorchvisionAugmentation",
    "batches",
    "build_test_loader",
    "build_train_loader",
    "check_class_count",
    "load_dataset",
    "read_image",
    "register_coco_dataset",
    "register_surface_defects",
]
