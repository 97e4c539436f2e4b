"""Size of images in a config: one number changes all that resizes or crops, in proportion."""

from __future__ import annotations

import copy
from collections.abc import Iterator

from omegaconf import DictConfig, ListConfig, OmegaConf

# Arguments of augmentations that are sizes in pixels.
SIZE_KEYS = (
    "short_edge_length",
    "max_size",
    "target_height",
    "target_width",
    "crop_size",
    "size",
    "max_side",
)


def set_test_size(config: DictConfig, image_size: int) -> float:
    """Resize the images of the test to a shorter side, in place.

    The limit of the longer side changes in proportion.

    Returns:
        The factor by which the sizes have changed.

    Raises:
        ValueError: the config does not resize to one shorter side, or the size is not positive.
    """
    if image_size < 1:
        raise ValueError(f"the image size is {image_size}; it must be at least 1 pixel")

    for node in walk_augmentations(config.dataloader.test.mapper.augmentations):
        before = node.get("short_edge_length")
        if isinstance(before, ListConfig) and len(set(before)) == 1:
            before = before[0]
        if isinstance(before, int):
            factor = image_size / before
            scale_sizes(node, factor)
            # Exactly, where the product would be rounded.
            node.short_edge_length = image_size
            return factor

    raise ValueError(
        "--image-size changes the ResizeShortestEdge of the test, but the config has none with one "
        "shorter side: change dataloader.test.mapper.augmentations"
    )


def set_image_size(config: DictConfig, image_size: int) -> str:
    """Change the sizes of the test, and in proportion those of the training, in place.

    A training that resizes nothing resizes as the test does.

    Returns:
        What was done, in one line.

    Raises:
        ValueError: see :func:`set_test_size`.
    """
    factor = set_test_size(config, image_size)
    test = config.dataloader.test.mapper.augmentations
    resize = next(node for node in walk_augmentations(test) if "short_edge_length" in node)
    limit = f", the longer side to at most {resize.max_size}" if resize.get("max_size") else ""
    text = f"--image-size {image_size}: the shorter side is resized to {image_size}{limit}"

    mapper = config.dataloader.train.mapper
    augmentations = mapper.augmentations
    num_scaled = 0
    others = [mapper.get("mixes"), mapper.get("close_up_augmentations")]
    for node in walk_augmentations([augmentations, *others]):
        num_scaled += scale_sizes(node, factor)
    if num_scaled:
        return f"{text}; the sizes of the training are multiplied by {factor:.3g}"

    augmentations.append(copy.deepcopy(resize))
    return f"{text}, in the training too, which resized nothing"


def walk_augmentations(node: object) -> Iterator[DictConfig]:
    """Yield the augmentations of a config, nested ones too."""
    if isinstance(node, DictConfig):
        if "_target_" in node:
            yield node
        for key in node:
            if OmegaConf.is_config(node[key]):
                yield from walk_augmentations(node[key])
    elif isinstance(node, ListConfig | list):
        for part in node:
            yield from walk_augmentations(part)


def scale_sizes(node: DictConfig, factor: float) -> int:
    """Multiply the sizes in pixels of an augmentation, in place; parts of an image stay.

    Returns:
        The number of the arguments that are sizes.
    """
    num_sizes = 0
    for key in SIZE_KEYS:
        value = node.get(key)
        if isinstance(value, ListConfig | tuple | list) and is_pixels(list(value)):
            node[key] = [scaled(side, factor) for side in value]
            num_sizes += 1
        elif is_pixels([value]):
            node[key] = scaled(value, factor)
            num_sizes += 1
    return num_sizes


def is_pixels(values: list[object]) -> bool:
    """Return whether values are numbers of pixels, which are whole numbers."""
    return bool(values) and all(type(value) is int for value in values)


def scaled(side: int, factor: float) -> int:
    """Return a side times a factor, of at least one pixel."""
    return max(1, round(side * factor))
