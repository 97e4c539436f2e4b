"""Images: reading their files, and taking them in the forms that users have them in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.utils.file_io import PathManager
from PIL import Image, UnidentifiedImageError

# PIL takes larger images for an attack: it warns of them, and refuses those of twice the size. Line-scan cameras and
# scanners make images of 20,000 x 20,000 pixels, which its own limit refuses.
MAX_PIXELS = 2**29


if Image.MAX_IMAGE_PIXELS is not None:  # None is a user's "no limit"
    Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS, MAX_PIXELS)


STRIP_PIXELS = (
    2**24
)  # that are converted at a time: large images need little memory beside themselves


ORIENTATION = 0x0112  # the EXIF tag that says how an image is turned


TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


# What PIL raises for files that are no images, broken ones, and ones too large.
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
    """(H, W, 3) uint8 image, as :func:`pil_to_rgb` makes it; of a file of several pages or frames the first.

    Raises:
        ImageReadError: naming the file.
    """
    try:
        with PathManager.open(file_name, "rb") as file, Image.open(file) as image:
            rgb = pil_to_rgb(image)
    except UnidentifiedImageError as error:
        raise unreadable(file_name, "it is empty, or of no kind of image that is known") from error
    except UNREADABLE as error:
        # PIL's words are kept: they tell a missing file from a truncated one.
        raise unreadable(file_name, str(error) or type(error).__name__) from error
    return rgb[..., ::-1] if image_format == "BGR" else rgb


def unreadable(file_name: str, reason: str) -> ImageReadError:
    return ImageReadError(
        f"cannot read the image {file_name}: {reason}; replace the file or remove it from the data"
    )


def pil_to_rgb(image: Image.Image) -> np.ndarray:
    """(H, W, 3) uint8 RGB of a PIL image, as a viewer shows it; training and detection see the same.

    It is turned as its EXIF data says. What is transparent shows white, not the colors that happen to lie under it.
    Of 16 bits the upper 8 are kept. Floating values lie in [0, 1], or else in 0..255, where they are cut off.
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
    """How an image is turned; 1, not at all, where the EXIF data is broken, since the image is not."""
    try:
        return int(image.getexif().get(ORIENTATION, 1))
    except Exception:
        return 1


def strip_to_rgb(image: Image.Image) -> np.ndarray:
    """(H, W, 3) uint8 RGB of a PIL image of any mode."""
    if image.mode == "I" or image.mode.startswith("I;16"):
        gray = (np.asarray(image).astype(np.int64).clip(0, 0xFFFF) >> 8).astype(np.uint8)
        return np.repeat(gray[..., None], 3, axis=2)
    if image.mode in {"RGBA", "LA", "PA", "RGBa", "La"} or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    # A copy, since PIL lends its memory for reading only.
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))


def floating_to_gray(values: np.ndarray) -> np.ndarray:
    """(H, W) floating values in [0, 1], or else in 0..255 -> (H, W) uint8; NaN is black."""
    finite = values[np.isfinite(values)]
    in_unit = finite.min(initial=0) >= 0 and finite.max(initial=0) <= 1
    scaled = np.nan_to_num(values * np.float32(255 if in_unit else 1), posinf=255, neginf=0)
    return scaled.round().clip(0, 255).astype(np.uint8)


ImageLike = np.ndarray | torch.Tensor | Image.Image | str | Path
CHANNEL_ORDERS = ("RGB", "BGR")


def to_rgb(image: ImageLike, channel_order: str = "RGB") -> np.ndarray:
    """(H, W, 3) uint8 RGB of an image.

    Args:
        image: a path; a PIL image of any mode; an array, (H, W, 3), (H, W, 4) (the alpha is dropped) or (H, W) gray, of
            uint8, or of uint16 (the upper 8 bits are kept); or a tensor (3, H, W), (1, H, W) or (H, W), of uint8, or
            floating in [0, 1].
        channel_order: of arrays and tensors, "RGB" or "BGR" (as OpenCV reads images).

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
        raise TypeError(
            f"an image is a path, a PIL image, an array or a tensor, not a {type(image).__name__}"
        )
    colors = array_to_colors(image)
    return colors[..., ::-1] if channel_order == "BGR" else colors


def array_to_colors(image: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 of an array, channels in its own order."""
    is_color = image.ndim == 3 and image.shape[2] in (1, 3, 4)
    if (
        image.dtype not in (np.uint8, np.uint16)
        or not (image.ndim == 2 or is_color)
        or 0 in image.shape
    ):
        raise ValueError(
            f"an image is an array of shape (H, W), (H, W, 3) or (H, W, 4) of uint8 or uint16, "
            f"not of shape {image.shape} and {image.dtype}; of values in [0, 1] pass (255 * image).astype(numpy.uint8)"
        )
    if image.dtype == np.uint16:
        image = (image >> 8).astype(np.uint8)
    if image.ndim == 2 or image.shape[2] == 1:
        return np.repeat(image.reshape(*image.shape[:2], 1), 3, axis=2)
    return image[..., :3]


def tensor_to_array(image: torch.Tensor) -> np.ndarray:
    """(H, W, C) uint8 of a (C, H, W) or (H, W) tensor."""
    if (
        image.dim() not in (2, 3)
        or (image.dim() == 3 and image.shape[0] not in (1, 3, 4))
        or 0 in image.shape
    ):
        raise ValueError(
            f"an image is a tensor of shape (3, H, W), (1, H, W) or (H, W), not {tuple(image.shape)}"
        )
    image = image.detach().cpu()
    if image.is_floating_point():
        low, high = image.min().item(), image.max().item()
        if not (low >= 0 and high <= 1):  # false for NaN, too
            raise ValueError(
                f"a floating image lies in [0, 1], this one reaches from {low:g} to {high:g}; divide it by its "
                "maximum value, or pass uint8 in 0..255"
            )
        image = (image.float() * 255).round().to(torch.uint8)
    if image.dtype != torch.uint8:
        raise ValueError(
            f"an image is a tensor of uint8 in 0..255 or floating in [0, 1], not of {image.dtype}"
        )
    array: np.ndarray = image.numpy()
    return array if array.ndim == 2 else array.transpose(1, 2, 0)


def as_batch(images: Any) -> list[ImageLike] | None:
    """The images of a list, a tuple, a (B, 3, H, W) tensor or a (B, H, W, 3) array; None for a single image."""
    if isinstance(images, (list, tuple)):
        return list(images)
    if isinstance(images, (np.ndarray, torch.Tensor)) and images.ndim == 4:
        return list(images)
    return None
