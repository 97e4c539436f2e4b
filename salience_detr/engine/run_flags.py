"""Flags of a run that stand for keys of its config, and contradictions between the two."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from detectron2.utils import comm
from omegaconf import DictConfig, OmegaConf

from salience_detr.config import ConfigError
from salience_detr.data.image_size import set_image_size

# Key of the config by the name of the flag's value.
KEYS = {
    "output": "train.output_dir",
    "device": "train.device",
    "seed": "train.seed",
    "lr": "optimizer.lr",
    "weights": "train.init_checkpoint",
    "batch_size": "dataloader.train.total_batch_size",
}
AUGMENTATIONS = "mapper.augmentations"


def use_run_flags(config: DictConfig, args: argparse.Namespace, overrides: Sequence[str]) -> None:
    """Change a config, in place, as the flags say; ``overrides`` are applied already.

    Raises:
        ConfigError: a flag and an override of its key say different things.
        ValueError: see :func:`set_image_size`.
    """
    overridden = {word.partition("=")[0].lstrip("+"): word for word in overrides}
    for name, key in KEYS.items():
        value = getattr(args, name, None)
        if value is None:
            continue

        if key in overridden and OmegaConf.select(config, key) != value:
            flag = name.replace("_", "-")
            raise ConfigError(
                f"--{flag} {value} and {overridden[key]} contradict each other: leave one out"
            )
        # "auto" is found once the data are known.
        if value != "auto" or name == "device":
            OmegaConf.update(config, key, value)

    if args.image_size is not None:
        for key, word in overridden.items():
            if AUGMENTATIONS in key:
                raise ConfigError(
                    f"--image-size {args.image_size} and {word} contradict each other: leave one "
                    "out"
                )
        text = set_image_size(config, args.image_size)
        if comm.is_main_process():
            print(text, flush=True)
