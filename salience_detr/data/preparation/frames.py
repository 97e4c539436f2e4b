"""Boxes drawn on an image as it is stored, or on a copy of another size, in the frame of the image as shown."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from salience_detr.data.images import ORIENTATION

Size = tuple[float, float]
Box = tuple[float, float, float, float]

# EXIF orientations that exchange the sides.
QUARTER_TURNS = (5, 6, 7, 8)


def shown_size(path: Path) -> tuple[tuple[int, int], int]:
    """(width, height) of an image, turned as its EXIF data says, and its EXIF orientation; only its header is read."""
    with Image.open(path) as image:
        width, height = image.size
        orientation = int(image.getexif().get(ORIENTATION, 1))
    return ((height, width) if orientation in QUARTER_TURNS else (width, height)), orientation


def to_shown_frame(box: Box, said: Size, shown: Size, orientation: int = 1) -> Box | None:
    """A box in the frame in which an image is shown.

    Many tools draw boxes on the image as it is stored, before the turn that its EXIF data asks for, or on a
    smaller copy; the size that they write down tells.

    Args:
        box: (x0, y0, x1, y1) in a frame of ``said``.
        said: (width, height) that the annotations give.
        shown: (width, height) of the image as it is shown.
        orientation: of the EXIF data.

    Returns:
        (x0, y0, x1, y1) in a frame of ``shown``; None if the two frames have different shapes.
    """
    if said == shown:
        return box
    if not have_one_shape(said, shown):
        turned = (said[1], said[0])
        if orientation not in QUARTER_TURNS or not have_one_shape(turned, shown):
            return None
        box, said = turn(box, said, orientation), turned
    x, y = shown[0] / said[0], shown[1] / said[1]
    return box[0] * x, box[1] * y, box[2] * x, box[3] * y


def have_one_shape(one: Size, other: Size) -> bool:
    """Whether a size is another one times a number, but for the rounding to whole pixels."""
    return abs(one[0] * other[1] - one[1] * other[0]) <= max(*one, *other)


def turn(box: Box, size: Size, orientation: int) -> Box:
    """A box of an image that is stored with ``size`` (width, height), after the turn of EXIF orientation 5 to 8."""
    (x0, y0, x1, y1), (width, height) = box, size
    return {
        5: (y0, x0, y1, x1),
        6: (height - y1, x0, height - y0, x1),
        7: (height - y1, width - x1, height - y0, width - x0),
        8: (y0, width - x1, y1, width - x0),
    }[orientation]
