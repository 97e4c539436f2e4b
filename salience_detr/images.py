"""Pictures in the forms that users have them in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from salience_detr.data.mapper import pil_to_rgb, read_image

ImageLike = np.ndarray | torch.Tensor | Image.Image | str | Path
CHANNEL_ORDERS = ("RGB", "BGR")


def to_rgb(image: ImageLike, channel_order: str = "RGB") -> np.ndarray:
    """(H, W, 3) uint8 RGB of a picture.

    Args:
        image: a path; a PIL image of any mode; an array, (H, W, 3), (H, W, 4) (the alpha is dropped) or (H, W) grey, of
            uint8, or of uint16 (the upper 8 bits are kept); or a tensor (3, H, W), (1, H, W) or (H, W), of uint8, or
            floating in [0, 1].
        channel_order: of arrays and tensors, "RGB" or "BGR" (as OpenCV reads pictures).

    Raises:
        ImageReadError: the file cannot be read.
        ValueError: an array or tensor of another shape, type or range, or an unknown order.
        TypeError: no picture at all.
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
        raise TypeError(f"a picture is a path, a PIL image, an array or a tensor, not a {type(image).__name__}")
    colors = array_to_colors(image)
    return colors[..., ::-1] if channel_order == "BGR" else colors


def array_to_colors(image: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 of an array, channels in its own order."""
    is_color = image.ndim == 3 and image.shape[2] in (1, 3, 4)
    if image.dtype not in (np.uint8, np.uint16) or not (image.ndim == 2 or is_color) or 0 in image.shape:
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
    if image.dim() not in (2, 3) or (image.dim() == 3 and image.shape[0] not in (1, 3, 4)) or 0 in image.shape:
        raise ValueError(f"an image is a tensor of shape (3, H, W), (1, H, W) or (H, W), not {tuple(image.shape)}")
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
        raise ValueError(f"an image is a tensor of uint8 in 0..255 or floating in [0, 1], not of {image.dtype}")
    array: np.ndarray = image.numpy()
    return array if array.ndim == 2 else array.transpose(1, 2, 0)


def as_batch(images: Any) -> list[ImageLike] | None:
    """The pictures of a list, a tuple, a (B, 3, H, W) tensor or a (B, H, W, 3) array; None for a single picture."""
    if isinstance(images, (list, tuple)):
        return list(images)
    if isinstance(images, (np.ndarray, torch.Tensor)) and images.ndim == 4:
        return list(images)
    return None
