"""Images as (H, W, 3) uint8 RGB arrays, from files and from the types that users pass.

All images are shown as a viewer shows them: rotated as their EXIF data says, transparent pixels
white. Those of 8 bits are used as they are. The values of deep images (more than 8 bits, or
floating values) are mapped to 0..255 by a range that is the same for all images of a data set: see
:mod:`salience_detr.data.value_range` for the rule that chooses it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from detectron2.utils.file_io import PathManager
from PIL import Image, UnidentifiedImageError

from salience_detr.data.decoding import DecodedImage, decode_file, decode_pil
from salience_detr.data.value_range import ValueRange

ImageLike: TypeAlias = np.ndarray | torch.Tensor | Image.Image | str | Path
CHANNEL_ORDERS = ("RGB", "BGR")

# Large images are converted in strips of so many pixels, to need little memory beside themselves.
STRIP_PIXELS = 2**24

TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
TRANSPARENT_MODES = {"RGBA", "LA", "PA", "RGBa", "La"}

# Errors of PIL for files that are no images, broken, or too large.
UNREADABLE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    MemoryError,
    RuntimeError,
    Image.DecompressionBombError,
)


class ImageReadError(RuntimeError):
    """An image that is missing, truncated, or not an image."""


def read_image(
    file_name: str, image_format: str = "RGB", value_range: ValueRange | None = None
) -> np.ndarray:
    """Read an image file; of several pages or frames, the first.

    Args:
        file_name: path or address of the file.
        image_format: order of the channels of the result, "RGB" or "BGR".
        value_range: range of the values of deep images; by default each image has its own.

    Returns:
        (H, W, 3) uint8.

    Raises:
        ImageReadError: the file cannot be read; the message names it.
    """
    decoded = decode_named(file_name)
    rgb = decoded_to_rgb(decoded, value_range or ValueRange())
    return rgb[..., ::-1] if image_format == "BGR" else rgb


def decode_named(file_name: str) -> DecodedImage:
    """Decode an image file.

    Raises:
        ImageReadError: the file cannot be read; the message names it.
    """
    try:
        with PathManager.open(file_name, "rb") as file:
            return decode_file(file)
    except Exception as error:  # damaged files make the decoders fail in many ways
        # PIL's message tells a missing file from a truncated one.
        reason = str(error) or type(error).__name__
        if isinstance(error, UnidentifiedImageError):
            reason = "it is empty, or of no kind of image that is known"
        remedy = "replace the file or remove it from the data"
        raise ImageReadError(f"cannot read the image {file_name}: {reason}; {remedy}") from error


def pil_to_rgb(image: Image.Image, value_range: ValueRange | None = None) -> np.ndarray:
    """Convert a PIL image of any mode to (H, W, 3) uint8 RGB; see :func:`read_image`.

    Raises:
        ImageReadError: its file is damaged or truncated.
    """
    try:
        decoded = decode_pil(image)
    except UNREADABLE as error:
        name = getattr(image, "filename", "") or "of PIL"
        raise ImageReadError(f"cannot read the image {name}: {error}; replace it") from error
    return decoded_to_rgb(decoded, value_range or ValueRange())


def decoded_to_rgb(decoded: DecodedImage, value_range: ValueRange) -> np.ndarray:
    """Convert a decoded image to (H, W, 3) uint8 RGB; transparent pixels become white."""
    image = decoded.pixels
    if isinstance(image, np.ndarray):
        values = value_range.to_uint8(image)
        image = Image.fromarray(values)
        if values.ndim == 3 and values.shape[2] == 4 and decoded.is_premultiplied:
            image = Image.frombytes("RGBa", image.size, image.tobytes())

    turn = TURNS.get(decoded.orientation)
    if turn is not None:
        image = image.transpose(turn)

    width, height = image.size
    rows = max(1, STRIP_PIXELS // max(1, width))
    if height <= rows:
        return strip_to_rgb(image)

    rgb = np.empty((height, width, 3), np.uint8)
    for top in range(0, height, rows):
        bottom = min(top + rows, height)
        rgb[top:bottom] = strip_to_rgb(image.crop((0, top, width, bottom)))
    return rgb


def strip_to_rgb(image: Image.Image) -> np.ndarray:
    """Convert a PIL image of a mode of 8 bits to (H, W, 3) uint8 RGB."""
    if image.mode in TRANSPARENT_MODES or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    if image.mode != "RGB":
        image = image.convert("RGB")
    return np.array(image)  # a copy: PIL lends its memory for reading only


def to_rgb(
    image: ImageLike, channel_order: str = "RGB", value_range: ValueRange | None = None
) -> np.ndarray:
    """Convert an image of any supported type.

    Args:
        image: a path; a PIL image of any mode; an array (H, W, 3), (H, W, 4) (alpha is dropped) or
            (H, W), uint8 or uint16; or a tensor (3, H, W), (1, H, W) or (H, W), uint8 or floating
            in [0, 1].
        channel_order: of arrays and tensors, "RGB" or "BGR" (as OpenCV reads images).
        value_range: range of the values of deep images (not of tensors); by default each image has
            its own.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        ImageReadError: the file cannot be read.
        ValueError: an array or tensor of another shape, type or range, or an unknown order.
        TypeError: no image at all.
    """
    if channel_order not in CHANNEL_ORDERS:
        raise ValueError(f'the channel order is "RGB" or "BGR", not {channel_order!r}')

    if isinstance(image, (str, Path)):
        return read_image(str(image), value_range=value_range)
    if isinstance(image, Image.Image):
        return pil_to_rgb(image, value_range)
    if isinstance(image, torch.Tensor):
        image = tensor_to_array(image)
    if not isinstance(image, np.ndarray):
        kind = type(image).__name__
        raise TypeError(f"an image is a path, a PIL image, an array or a tensor, not a {kind}")

    colors = array_to_colors(image, value_range or ValueRange())
    return colors[..., ::-1] if channel_order == "BGR" else colors


def array_to_colors(image: np.ndarray, value_range: ValueRange) -> np.ndarray:
    """Convert an array to (H, W, 3) uint8, channels in its own order; see :func:`to_rgb`."""
    has_shape = image.ndim == 2 or (image.ndim == 3 and image.shape[2] in (1, 3, 4))
    has_dtype = image.dtype in (np.uint8, np.uint16)
    if not has_shape or not has_dtype or 0 in image.shape:
        raise ValueError(
            "an image is an array of shape (H, W), (H, W, 3) or (H, W, 4) of uint8 or uint16, not "
            f"of shape {image.shape} and {image.dtype}; of values in [0, 1] pass "
            "(255 * image).astype(numpy.uint8)"
        )

    image = image[..., :3] if image.ndim == 3 else image
    if image.dtype == np.uint16:
        image = value_range.to_uint8(image)
    if image.ndim == 2 or image.shape[2] == 1:
        return np.repeat(image.reshape(*image.shape[:2], 1), 3, axis=2)
    return image


def tensor_to_array(image: torch.Tensor) -> np.ndarray:
    """Convert a (C, H, W) or (H, W) tensor to an (H, W, C) or (H, W) uint8 array."""
    has_shape = image.dim() == 2 or (image.dim() == 3 and image.shape[0] in (1, 3, 4))
    if not has_shape or 0 in image.shape:
        shape = tuple(image.shape)
        raise ValueError(
            f"an image is a tensor of shape (3, H, W), (1, H, W) or (H, W), not {shape}"
        )

    image = image.detach().cpu()
    if image.is_floating_point():
        low = image.min().item()
        high = image.max().item()
        if not (low >= 0 and high <= 1):  # false for NaN, too
            raise ValueError(
                f"a floating image lies in [0, 1], this one reaches from {low:g} to {high:g}; "
                "divide it by its maximum value, or pass uint8 in 0..255"
            )
        image = (image.float() * 255).round().to(torch.uint8)
    if image.dtype != torch.uint8:
        raise ValueError(
            f"an image is a tensor of uint8 in 0..255 or floating in [0, 1], not of {image.dtype}"
        )

    array: np.ndarray = image.numpy()
    return array if array.ndim == 2 else array.transpose(1, 2, 0)


def as_batch(images: ImageLike | Sequence[ImageLike]) -> list[ImageLike] | None:
    """Return the images of a list, a tuple or a 4-d array or tensor, or None for a single image."""
    if isinstance(images, (list, tuple)):
        return list(images)
    if isinstance(images, (np.ndarray, torch.Tensor)) and images.ndim == 4:
        return list(images)
    return None
