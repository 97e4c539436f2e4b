"""Images as (H, W, 3) uint8 RGB arrays, from files and from the types that users pass."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from detectron2.utils.file_io import PathManager
from PIL import Image, UnidentifiedImageError

ImageLike: TypeAlias = np.ndarray | torch.Tensor | Image.Image | str | Path
CHANNEL_ORDERS = ("RGB", "BGR")

# PIL warns of larger images and refuses those of twice the size, as attacks. Line-scan cameras and
# scanners make images of 20,000 x 20,000 pixels. None is a user's "no limit".
MAX_PIXELS = 2**29
if Image.MAX_IMAGE_PIXELS is not None:
    Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS, MAX_PIXELS)

# Large images are converted in strips of so many pixels, to need little memory beside themselves.
STRIP_PIXELS = 2**24

ORIENTATION = 0x0112  # EXIF tag
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


def read_image(file_name: str, image_format: str = "RGB") -> np.ndarray:
    """Read a file as :func:`pil_to_rgb` converts it; of several pages or frames, the first.

    Returns:
        (H, W, 3) uint8, channels in the order of ``image_format`` ("RGB" or "BGR").

    Raises:
        ImageReadError: the file cannot be read; the message names it.
    """
    try:
        with PathManager.open(file_name, "rb") as file, Image.open(file) as image:
            rgb = pil_to_rgb(image)
    except UNREADABLE as error:
        # PIL's message tells a missing file from a truncated one.
        reason = str(error) or type(error).__name__
        if isinstance(error, UnidentifiedImageError):
            reason = "it is empty, or of no kind of image that is known"
        remedy = "replace the file or remove it from the data"
        raise ImageReadError(f"cannot read the image {file_name}: {reason}; {remedy}") from error
    return rgb[..., ::-1] if image_format == "BGR" else rgb


def pil_to_rgb(image: Image.Image) -> np.ndarray:
    """Convert a PIL image of any mode, as a viewer shows it; training and detection use it alike.

    The image is rotated as its EXIF data says. Transparent pixels become white, whatever color lies
    under them. 16-bit images keep the upper 8 bits. Floating values are in [0, 1], or else in
    0..255, where they are clipped.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    turn = TURNS.get(orientation(image))
    if turn is not None:
        image = image.transpose(turn)
    if image.mode == "F":
        image = Image.fromarray(floating_to_gray(np.asarray(image)))

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
    """Return the EXIF orientation of an image, 1 (upright) where there is none or it is broken."""
    try:
        return int(image.getexif().get(ORIENTATION, 1))
    except Exception:  # broken EXIF data fails in many ways, and the image is fine
        return 1


def strip_to_rgb(image: Image.Image) -> np.ndarray:
    """Convert a PIL image of any mode but "F" to (H, W, 3) uint8 RGB."""
    # PIL would clip 16-bit values at 255.
    if image.mode == "I" or image.mode.startswith("I;16"):
        values = np.asarray(image).astype(np.int64).clip(0, 0xFFFF)
        gray = (values >> 8).astype(np.uint8)
        return np.repeat(gray[..., None], 3, axis=2)

    if image.mode in TRANSPARENT_MODES or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    if image.mode != "RGB":
        image = image.convert("RGB")
    return np.array(image)  # a copy: PIL lends its memory for reading only


def floating_to_gray(values: np.ndarray) -> np.ndarray:
    """Convert (H, W) values in [0, 1], or else in 0..255, to uint8; NaN becomes black."""
    finite = values[np.isfinite(values)]
    is_unit = finite.min(initial=0) >= 0 and finite.max(initial=0) <= 1
    scale = np.float32(255 if is_unit else 1)
    scaled = np.nan_to_num(values * scale, posinf=255, neginf=0)
    return scaled.round().clip(0, 255).astype(np.uint8)


def to_rgb(image: ImageLike, channel_order: str = "RGB") -> np.ndarray:
    """Convert an image of any supported type.

    Args:
        image: a path; a PIL image of any mode; an array (H, W, 3), (H, W, 4) (alpha is dropped) or
            (H, W), uint8 or uint16 (the upper 8 bits are kept); or a tensor (3, H, W), (1, H, W) or
            (H, W), uint8 or floating in [0, 1].
        channel_order: of arrays and tensors, "RGB" or "BGR" (as OpenCV reads images).

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
        return read_image(str(image))
    if isinstance(image, Image.Image):
        return pil_to_rgb(image)
    if isinstance(image, torch.Tensor):
        image = tensor_to_array(image)
    if not isinstance(image, np.ndarray):
        kind = type(image).__name__
        raise TypeError(f"an image is a path, a PIL image, an array or a tensor, not a {kind}")

    colors = array_to_colors(image)
    return colors[..., ::-1] if channel_order == "BGR" else colors


def array_to_colors(image: np.ndarray) -> np.ndarray:
    """Convert an array to (H, W, 3) uint8, channels in its own order; see :func:`to_rgb`."""
    has_shape = image.ndim == 2 or (image.ndim == 3 and image.shape[2] in (1, 3, 4))
    has_dtype = image.dtype in (np.uint8, np.uint16)
    if not has_shape or not has_dtype or 0 in image.shape:
        raise ValueError(
            "an image is an array of shape (H, W), (H, W, 3) or (H, W, 4) of uint8 or uint16, not "
            f"of shape {image.shape} and {image.dtype}; of values in [0, 1] pass "
            "(255 * image).astype(numpy.uint8)"
        )

    if image.dtype == np.uint16:
        image = (image >> 8).astype(np.uint8)
    if image.ndim == 2 or image.shape[2] == 1:
        return np.repeat(image.reshape(*image.shape[:2], 1), 3, axis=2)
    return image[..., :3]


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
