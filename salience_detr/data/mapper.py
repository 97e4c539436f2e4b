"""From records of a data set to what the model is given."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from detectron2.data import transforms as T
from detectron2.structures import Boxes, BoxMode, Instances
from detectron2.utils.file_io import PathManager
from PIL import Image, UnidentifiedImageError

# PIL takes larger pictures for an attack: it warns of them, and refuses those of twice the size. Line-scan cameras and
# scanners make pictures of 20,000 x 20,000 pixels, which its own limit refuses.
MAX_PIXELS = 2**29
if Image.MAX_IMAGE_PIXELS is not None:  # None is a user's "no limit"
    Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS, MAX_PIXELS)

STRIP_PIXELS = 2**24  # that are converted at a time: large pictures need little memory beside themselves

ORIENTATION = 0x0112  # the EXIF tag that says how a picture is turned
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# What PIL raises for files that are no pictures, broken ones, and ones too large.
UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, MemoryError, RuntimeError, Image.DecompressionBombError)


class ImageReadError(RuntimeError):
    """A picture that is missing, truncated, or not a picture."""


def read_image(file_name: str, image_format: str = "RGB") -> np.ndarray:
    """(H, W, 3) uint8 picture, as :func:`pil_to_rgb` makes it; of a file of several pages or frames the first.

    Raises:
        ImageReadError: naming the file.
    """
    try:
        with PathManager.open(file_name, "rb") as file, Image.open(file) as image:
            rgb = pil_to_rgb(image)
    except UnidentifiedImageError as error:
        raise unreadable(file_name, "it is empty, or of no kind of picture that is known") from error
    except UNREADABLE as error:
        # PIL's words are kept: they tell a missing file from a truncated one.
        raise unreadable(file_name, str(error) or type(error).__name__) from error
    return rgb[..., ::-1] if image_format == "BGR" else rgb


def unreadable(file_name: str, reason: str) -> ImageReadError:
    return ImageReadError(f"cannot read the picture {file_name}: {reason}; replace the file or remove it from the data")


def pil_to_rgb(image: Image.Image) -> np.ndarray:
    """(H, W, 3) uint8 RGB of a PIL image, as a viewer shows it; training and detection see the same.

    It is turned as its EXIF data says. What is transparent shows white, not the colours that happen to lie under it.
    Of 16 bits the upper 8 are kept. Floating values lie in [0, 1], or else in 0..255, where they are cut off.
    """
    turn = TURNS.get(orientation(image))
    if turn is not None:
        image = image.transpose(turn)
    if image.mode == "F":
        image = Image.fromarray(floating_to_grey(np.asarray(image)))
    width, height = image.size
    rows = max(1, STRIP_PIXELS // max(1, width))
    if height <= rows:
        return strip_to_rgb(image)
    rgb = np.empty((height, width, 3), np.uint8)
    for top in range(0, height, rows):
        bottom = min(top + rows, height)
        rgb[top:bottom] = strip_to_rgb(image.crop((0, top, width, bottom)))
    return rgb


def orientation(image: Image.Image) -> int:
    """How a picture is turned; 1, not at all, where the EXIF data is broken, since the picture is not."""
    try:
        return int(image.getexif().get(ORIENTATION, 1))
    except Exception:
        return 1


def strip_to_rgb(image: Image.Image) -> np.ndarray:
    """(H, W, 3) uint8 RGB of a PIL image of any mode."""
    if image.mode == "I" or image.mode.startswith("I;16"):
        grey = (np.asarray(image).astype(np.int64).clip(0, 0xFFFF) >> 8).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2)
    if image.mode in {"RGBA", "LA", "PA", "RGBa", "La"} or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    # A copy, since PIL lends its memory for reading only.
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))


def floating_to_grey(values: np.ndarray) -> np.ndarray:
    """(H, W) floating values in [0, 1], or else in 0..255 -> (H, W) uint8; NaN is black."""
    finite = values[np.isfinite(values)]
    in_unit = finite.min(initial=0) >= 0 and finite.max(initial=0) <= 1
    scaled = np.nan_to_num(values * np.float32(255 if in_unit else 1), posinf=255, neginf=0)
    return scaled.round().clip(0, 255).astype(np.uint8)


class DetectionMapper:
    """Reads a picture, augments it with its boxes, and packs both for the model.

    Boxes stay exact under the augmentations; those that a crop cuts are clipped to it, and those that end up without
    area are dropped. A picture without boxes stays.
    """

    def __init__(
        self,
        *,
        is_train: bool,
        augmentations: Sequence[T.Augmentation],
        image_format: str = "RGB",
        min_box_side: float = 1e-3,
    ) -> None:
        self.is_train = is_train
        self.augmentations = T.AugmentationList(list(augmentations))
        self.image_format = image_format
        self.min_box_side = min_box_side

    def __call__(self, record: dict[str, Any]) -> dict[str, Any]:
        """Map one record.

        Args:
            record: ``file_name``, ``height``, ``width``, ``image_id`` and, in training, ``annotations``.

        Returns:
            The record without its annotations, with ``image``, (3, H, W) uint8, and in training ``instances`` with
            ``gt_boxes`` (absolute xyxy in the frame of the image) and ``gt_classes``.

        Raises:
            ImageReadError: the picture cannot be read, or is not of the size that the record says.
        """
        mapped = {key: value for key, value in record.items() if key != "annotations"}
        image = read_image(record["file_name"], self.image_format)
        self.check_size(image, record)
        if not self.is_train:
            return mapped | self.prepare_image(image)
        boxes, classes = self.ground_truth(record)
        augmented = T.AugInput(image, boxes=boxes)
        self.augmentations(augmented)
        mapped["image"] = as_tensor(augmented.image)
        mapped["instances"] = self.instances(augmented.boxes, classes, augmented.image.shape[:2])
        return mapped

    def prepare_image(self, image: np.ndarray) -> dict[str, Any]:
        """(H, W, 3) picture in ``image_format`` -> ``image`` for the model, ``height`` and ``width`` of the picture."""
        augmented = T.AugInput(image)
        self.augmentations(augmented)
        return {"image": as_tensor(augmented.image), "height": image.shape[0], "width": image.shape[1]}

    @staticmethod
    def check_size(image: np.ndarray, record: dict[str, Any]) -> None:
        """Compare the size of the picture with the record's."""
        height, width = image.shape[:2]
        expected = (record.get("height", height), record.get("width", width))
        if (height, width) != expected:
            raise ImageReadError(
                f"the picture {record['file_name']} is {width}x{height}, but the annotations say "
                f"{expected[1]}x{expected[0]} (width x height); tools/check_dataset.py --fix corrects them"
            )

    @staticmethod
    def ground_truth(record: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
        """(G, 4) float64 boxes, absolute xyxy, and (G,) classes of a record, crowds left out."""
        annotations = [x for x in record.get("annotations", []) if not x.get("iscrowd", 0)]
        boxes = [BoxMode.convert(x["bbox"], x["bbox_mode"], BoxMode.XYXY_ABS) for x in annotations]
        classes = [x["category_id"] for x in annotations]
        return np.asarray(boxes, dtype=np.float64).reshape(-1, 4), np.asarray(classes, dtype=np.int64)

    def instances(self, boxes: np.ndarray, classes: np.ndarray, image_size: tuple[int, int]) -> Instances:
        """Instances of augmented boxes, clipped to an image of (height, width)."""
        height, width = image_size
        clipped = np.clip(boxes, 0, [width, height, width, height])
        kept = (clipped[:, 2:] - clipped[:, :2]).min(axis=1, initial=np.inf) > self.min_box_side
        instances = Instances((int(height), int(width)))
        instances.gt_boxes = Boxes(torch.from_numpy(clipped[kept].astype(np.float32)))
        instances.gt_classes = torch.from_numpy(classes[kept])
        return instances


def as_tensor(image: np.ndarray) -> torch.Tensor:
    """(H, W, 3) -> (3, H, W)"""
    return torch.from_numpy(np.array(image.transpose(2, 0, 1), order="C"))
