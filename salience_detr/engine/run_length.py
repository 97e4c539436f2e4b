"""Length of a run in epochs, and what follows from it: periods and warm-up."""

from __future__ import annotations

import math
from collections.abc import Collection
from pathlib import Path

from detectron2.data import MetadataCatalog
from omegaconf import DictConfig, OmegaConf

from salience_detr.config import ConfigError
from salience_detr.data.coco_format import LARGEST, DatasetError, read_coco
from salience_detr.data.datasets import as_list

# A warm-up that suits COCO would be all of the training on little data.
LONGEST_WARMUP = 0.1
# More evaluations than these cost time, and show no more.
MOST_EVALUATIONS = 20
# Images to train on for each image that is evaluated: evaluations take about a quarter of the time.
TRAINED_PER_EVALUATED = 2
# Part of a period that may be missing in the last one: the iterations of the run are rounded.
ROUNDED_PART = 0.05


def set_epochs(
    config: DictConfig, epochs: float | None, overridden: Collection[str], *, batch_size: int
) -> None:
    """Give a config other epochs over its own data set, in place; see :func:`fit_schedule`.

    Args:
        config: with the size of the batch that is trained with.
        epochs: None keeps those of the config, over batches of another size.
        overridden: keys that the user set on the command line, which stay.
        batch_size: the one that the config was written for.

    Raises:
        ConfigError: neither the number of its images nor that of its epochs is known.
    """
    # The override means the same as the flag.
    is_override = epochs is None and "train.epochs" in overridden
    if is_override and "train.max_iter" not in overridden:
        epochs = config.train.epochs
    if epochs is None and config.dataloader.train.total_batch_size == batch_size:
        return

    num_images = count_images(config.dataloader.train.dataset)
    if num_images is None:
        if is_override:
            raise ConfigError(
                f"train.epochs={epochs:g}: the size of {config.dataloader.train.dataset.names} is "
                f"not known; use --epochs {epochs:g} without the override"
            )
        epochs_before = config.train.get("epochs")
        if not epochs_before:
            length = "--batch-size" if epochs is None else f"--epochs {epochs:g}"
            raise ConfigError(
                f"{length}: neither train.epochs nor the size of "
                f"{config.dataloader.train.dataset.names} is known; set train.max_iter"
            )

        # The proportion of the config.
        num_images = max(1, round(config.train.max_iter * batch_size / epochs_before))
    num_test_images = count_images(config.dataloader.test.dataset) or 0
    fit_schedule(config, num_images, epochs, overridden, num_test_images=num_test_images)


def count_images(dataset: DictConfig) -> int | None:
    """Return the number of images of data sets; None if their files are not at hand."""
    num_images = 0
    for name in as_list(dataset.names):
        path = dataset.get("json_file") or MetadataCatalog.get(name).get("json_file")
        if not path or not Path(path).is_file():
            return None
        content = read_coco(Path(path), keep=True, lists=("images", "categories"))
        num_images += len(content["images"])
    return num_images


def fit_schedule(
    config: DictConfig,
    num_images: int,
    epochs: float | None,
    overridden: Collection[str],
    *,
    num_test_images: int = 0,
) -> None:
    """Give a run over ``num_images`` images the epochs of the config, or others.

    Periods and warm-up follow, unless they were overridden. Steps of the learning rate are parts of
    the run, and follow by themselves.

    Args:
        config: to change, in place.
        num_images: of the training set.
        epochs: None keeps those of the config.
        overridden: keys that the user set on the command line, which stay.
        num_test_images: images of an evaluation; 0 where they are unknown.

    Raises:
        DatasetError: there are no images.
        ConfigError: the number of epochs is not possible, or an override says another length.
    """
    if not num_images:
        raise DatasetError("the training data set holds no images")
    if epochs is not None and not 0 < epochs < LARGEST:
        raise ConfigError(f"--epochs is {epochs:g}; it must be positive and finite")

    # The recipe's number of epochs, over other data.
    train = config.train
    if epochs is not None:
        refuse_other_length(config, epochs, overridden)
    max_iter_before = train.max_iter
    epoch = num_images / config.dataloader.train.total_batch_size
    if "train.max_iter" not in overridden:
        if epochs is not None:
            train.epochs = epochs
        train.max_iter = max(1, round(train.epochs * epoch))

    # Evaluations and checkpoints keep their share of the run, within what is useful.
    scale = train.max_iter / max_iter_before
    shortest = max(epoch, train.max_iter / MOST_EVALUATIONS)
    if "train.checkpointer.period" not in overridden and train.checkpointer.period > 0:
        period = max(train.checkpointer.period * scale, shortest)
        train.checkpointer.period = divide_run(train.max_iter, period)

    # A large validation set is evaluated less often.
    batch_size = config.dataloader.train.total_batch_size
    shortest = max(shortest, TRAINED_PER_EVALUATED * num_test_images / batch_size)
    if "train.eval_period" not in overridden and train.eval_period > 0:
        period = max(train.eval_period * scale, shortest)
        train.eval_period = divide_run(train.max_iter, period)

    # The warm-up keeps its number of iterations, as a part of the run.
    schedule = config.lr_multiplier
    if "warmup_length" in schedule and "lr_multiplier.warmup_length" not in overridden:
        warmup_iterations = schedule.warmup_length * max_iter_before
        schedule.warmup_length = min(warmup_iterations / train.max_iter, LONGEST_WARMUP)


def refuse_other_length(config: DictConfig, epochs: float, overridden: Collection[str]) -> None:
    """Raise ConfigError if the user set another length of the run than --epochs says."""
    for key in ("train.max_iter", "train.epochs"):
        value = OmegaConf.select(config, key)
        if key in overridden and not (key == "train.epochs" and value == epochs):
            raise ConfigError(
                f"--epochs {epochs:g} and {key}={value} contradict each other: leave one out"
            )


def divide_run(max_iter: int, period: float) -> int:
    """Return the period, about the given one or longer, that divides a run into equal parts.

    Otherwise the last evaluation, at the end, could follow closely upon the one before.
    """
    num_parts = math.floor(max_iter / period + ROUNDED_PART)
    return math.ceil(max_iter / max(1, num_parts))
