"""The flag --augmentation: a preset of augmentations for the training data of any recipe."""

from __future__ import annotations

import logging
from collections.abc import Collection

from omegaconf import DictConfig

from salience_detr.config import ConfigError
from salience_detr.data.augmentation.presets import check_preset, find_image_size, use_preset

logger = logging.getLogger(__name__)

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

    if "close_up" not in config.train:
        config.train.close_up = CLOSE_UP
    size = find_image_size(config.dataloader)
    use_preset(config.dataloader, name)
    logger.info(
        "augmentation %s: shorter sides of %d to %d pixels, longer ones up to %d",
        name,
        min(size.sides),
        max(size.sides),
        size.max_side,
    )
