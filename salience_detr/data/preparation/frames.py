"""Frames in which boxes are drawn, and the frame of the EXIF-corrected image.

Many annotation tools draw boxes on the image as it is stored, before the turn that its EXIF data
asks for, or on a smaller copy. The annotated size, which they write down, tells which frame it was.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from salience_detr.data import decoding
from salience_detr.data.decoding import QUARTER_TURNS

Size = tuple[float, float]
Box = tuple[float, float, float, float]


def read_size(path: Path) -> tuple[tuple[int, int], int]:
    """Read the EXIF-corrected (width, height) and the EXIF orientation from an image's header."""
    with open(path, "rb") as file:
        return decoding.read_size(file)


def frame_transform(
    annotated_size: Size, image_size: Size, orientation: int = 1
) -> Callable[[Box], Box] | None:
    """Return the function that moves boxes into the frame of the EXIF-corrected image.

    Args:
        annotated_size: (width, height) that the annotations give.
        image_size: EXIF-corrected (width, height) of the image.
        orientation: EXIF orientation of the image.

    Returns:
        A function from (x0, y0, x1, y1) in the annotated frame to (x0, y0, x1, y1) in the image's;
        None if the two frames have different shapes.
    """
    if annotated_size == image_size:
        return lambda box: box

    if has_same_shape(annotated_size, image_size):
        return lambda box: scale_box(box, annotated_size, image_size)

    turned_size = (annotated_size[1], annotated_size[0])
    if orientation in QUARTER_TURNS and has_same_shape(turned_size, image_size):
        return lambda box: scale_box(
            turn_box(box, annotated_size, orientation), turned_size, image_size
        )
    return None


def has_same_shape(first: Size, second: Size) -> bool:
    """Return whether two sizes differ by a factor only, up to the rounding to whole pixels."""
    return abs(first[0] * second[1] - first[1] * second[0]) <= max(*first, *second)


def scale_box(box: Box, size: Size, new_size: Size) -> Box:
    """Scale an (x0, y0, x1, y1) box of an image of ``size`` with the image to ``new_size``."""
    scale_x = new_size[0] / size[0]
    scale_y = new_size[1] / size[1]
    return box[0] * scale_x, box[1] * scale_y, box[2] * scale_x, box[3] * scale_y


def turn_box(box: Box, size: Size, orientation: int) -> Box:
    """Turn an (x0, y0, x1, y1) box as EXIF orientations 5 to 8 turn an image of ``size``."""
    x0, y0, x1, y1 = box
    width, height = size
    return {
        5: (y0, x0, y1, x1),
        6: (height - y1, x0, height - y0, x1),
        7: (height - y1, width - x1, height - y0, width - x0),
        8: (y0, width - x1, y1, width - x0),
    }[orientation]
