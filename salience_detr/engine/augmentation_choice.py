"""The flag --augmentation: a preset of augmentations for the training data of any recipe."""

from __future__ import annotations

from collections.abc import Collection

from detectron2.utils import comm
from omegaconf import DictConfig

from salience_detr.config import ConfigError
from salience_detr.data.augmentation.presets import (
    ImageSize,
    check_preset,
    find_image_size,
    use_preset,
)

# Presets of large scale jitter.
SQUARES = ("lsj", "strong")
# Part of the run, at its end, without mixes, for configs that do not state it.
CLOSE_UP = 0.1


def choose_augmentation(
    config: DictConfig, name: str | None, overridden: Collection[str] = ()
) -> None:
    """Give a config the augmentations of a name, in place; None leaves it as it is.

    Args:
        config: of a LazyConfig file, overrides applied.
        name: see :data:`salience_detr.data.augmentation.presets.PRESETS`.
        overridden: keys that the user set on the command line.

    Raises:
        ConfigError: the name is unknown, or the augmentations are set twice.
        ImportError: a package is not installed.
    """
    if name is None:
        return

    # Mistakes come first: a preset may need a package.
    try:
        check_preset(name)
    except ValueError as error:
        raise ConfigError(f"--augmentation: {error}") from error

    mapper_key = "dataloader.train.mapper"
    twice = [key for key in overridden if key.startswith(f"{mapper_key}.augmentations")]
    if twice:
        raise ConfigError(f"--augmentation {name} replaces {twice[0]}: leave one of them out")
    if "augmentations" not in config.dataloader.train.get("mapper", {}):
        raise ConfigError(
            f"--augmentation {name} sets {mapper_key}.augmentations, which this config lacks; "
            "build the loader with salience_detr.data.DetectionMapper"
        )

    # Configs of earlier runs lack it.
    if "close_up" not in config.train:
        config.train.close_up = CLOSE_UP

    size = find_image_size(config.dataloader)
    use_preset(config.dataloader, name)
    if comm.is_main_process():
        print(f"--augmentation {name}: {describe(name, size)}", flush=True)


def describe(name: str, size: ImageSize) -> str:
    """Return the size of the images of a preset, in words."""
    if name in SQUARES:
        return f"squares of {size.crop} pixels"

    sides = f"{min(size.sides)} to {max(size.sides)}"
    if name == "hflip":
        sides = str(max(size.sides))
    return (
        f"the shorter side is resized to {sides} pixels, the longer one to at most {size.max_side}"
    )
