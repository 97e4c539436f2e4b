"""Settings of fine-tuning, from the command line into a config."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable

from detectron2.engine import HookBase
from omegaconf import DictConfig, OmegaConf

from salience_detr.config import ConfigError, resolve_device
from salience_detr.engine.checkpointing import TrainingCheckpointer
from salience_detr.engine.determinism import DeterminismHook
from salience_detr.engine.early_stopping import EarlyStoppingHook
from salience_detr.engine.freezing import FrozenBatchNormHook
from salience_detr.engine.schedules import use_schedule
from salience_detr.utils.config_keys import has_key

logger = logging.getLogger(__name__)


def use_tuning(config: DictConfig, args: argparse.Namespace) -> None:
    """Change a config, in place, as the flags of ``add_tuning_arguments`` say.

    The size of the batch follows with the data: see :mod:`salience_detr.engine.batch_size`.

    Raises:
        ConfigError: the config has no place for a setting.
    """
    if args.schedule is not None:
        use_schedule(config, args.schedule)

    settings = {
        "train.patience": args.patience,
        "train.freeze": args.freeze,
        "train.deterministic": args.deterministic or None,
        "optimizer.params.layer_decay": args.layer_decay,
        "dataloader.train.repeat_threshold": args.repeat_threshold,
    }
    for key, value in settings.items():
        if value is None:
            continue

        # Configs of earlier runs lack the newer settings of train.
        if not key.startswith("train.") and not has_key(config, key):
            flag = "--" + key.rpartition(".")[2].replace("_", "-")
            raise ConfigError(f"{flag}: the config has no {key}; it calls another function there")
        OmegaConf.update(config, key, value, force_add=True)


def check_tuning(config: DictConfig) -> None:
    """Check the settings of fine-tuning.

    Raises:
        ConfigError: a setting cannot be used.
    """
    patience = config.train.get("patience", 0)
    if patience < 0:
        raise ConfigError(f"train.patience is {patience}; it must be at least 0, which never stops")
    if patience and config.train.eval_period <= 0:
        raise ConfigError(
            f"train.patience={patience} counts evaluations, but train.eval_period is "
            f"{config.train.eval_period}: set it to a number of iterations"
        )

    patterns = frozen_names(config)
    if not all(isinstance(pattern, str) for pattern in patterns):
        raise ConfigError(f"train.freeze is {patterns}; it must be a list of names: [backbone]")


def frozen_names(config: DictConfig) -> list[str]:
    """Return the names in ``train.freeze``."""
    patterns = config.train.get("freeze") or []
    if isinstance(patterns, str):
        return [patterns]
    return list(patterns)


def first_hooks(config: DictConfig) -> list[HookBase]:
    """Build the hooks that act before others."""
    hooks: list[HookBase] = []
    if config.train.get("deterministic", False):
        hooks.append(DeterminismHook(resolve_device(config.train.device)))
    if frozen_names(config):
        hooks.append(FrozenBatchNormHook(frozen_names(config)))
    return hooks


def last_hooks(
    config: DictConfig,
    metric: str,
    *,
    checkpointer: TrainingCheckpointer,
    schedule: Callable[[float], float],
) -> list[HookBase]:
    """Build the hooks that act after others.

    Args:
        config: of the run.
        metric: the one that model_best goes by.
        checkpointer: of the run.
        schedule: factor of the learning rate at a part of the run.
    """
    patience = config.train.get("patience", 0)
    if not patience:
        return []
    return [EarlyStoppingHook(patience, metric, checkpointer=checkpointer, schedule=schedule)]
