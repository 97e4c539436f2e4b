"""Pointing a config at one's own data: data sets, classes, and a schedule of the same number of epochs."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Collection
from pathlib import Path

from omegaconf import DictConfig

from salience_detr.config import ConfigError
from salience_detr.data.coco_format import LARGEST, DatasetError, entry_fault, read_coco
from salience_detr.data.preparation.layouts import Split, find_splits

logger = logging.getLogger(__name__)

# A warm-up that is long for COCO would be all of the training on little data.
LONGEST_WARMUP = 0.1


def add_data_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags that :func:`use_own_data` reads."""
    group = parser.add_argument_group("own data, in COCO's format")
    group.add_argument(
        "--data-dir", metavar="DIR", help="a folder with both parts in a usual layout"
    )
    for split, words in (("train", "to train on"), ("val", "to evaluate on")):
        group.add_argument(f"--{split}-json", metavar="FILE", help=f"annotations {words}")
        group.add_argument(f"--{split}-images", metavar="DIR", help="the folder of their images")
    group.add_argument(
        "--epochs",
        type=float,
        metavar="N",
        help="times to see all images (default: as the config)",
    )


def use_own_data(
    config: DictConfig,
    args: argparse.Namespace,
    overridden: Collection[str] = (),
    needed: Collection[str] = ("train", "val"),
) -> None:
    """Change a config, in place, as the flags of the command line say; without flags it stays.

    The classes and their number come from the annotation files. The number of iterations follows from the epochs,
    the size of the data and of the batch; evaluations, checkpoints and the steps of the rate keep their places in it.

    Args:
        config: of a LazyConfig file, overrides applied.
        args: see :func:`add_data_arguments`.
        overridden: keys that the user set on the command line, which stay.
        needed: the parts that there must be; the schedule is left alone where no training data are needed.

    Raises:
        DatasetError, ConfigError: the files are not there or not right, or flags are missing.
    """
    splits = chosen_splits(args)
    if not splits:
        if args.epochs is not None:
            raise ConfigError(
                "--epochs goes with --data-dir or --train-json; set train.max_iter for a config's data"
            )
        return
    for name, purpose in (("val", "evaluate"), ("train", "train")):
        if name in splits or name not in needed:
            continue
        where = f"none are in {args.data_dir}" if args.data_dir else "none are given"
        raise ConfigError(
            f"data to {purpose} on: {where}; add --{name}-json FILE --{name}-images DIR"
        )
    categories = {name: read_categories(split.json_file) for name, split in splits.items()}
    if len(splits) == 2:
        check_equal(splits, categories)
    for name, split in splits.items():
        dataset = config.dataloader["train" if name == "train" else "test"].dataset
        dataset.names = str(split.json_file)
        dataset.json_file, dataset.image_root = str(split.json_file), str(split.image_root)
    if "model.num_classes" not in overridden:
        config.model.num_classes = len(next(iter(categories.values())))
    if "train" in needed:
        fit_schedule(
            config, len(read_coco(splits["train"].json_file)["images"]), args.epochs, overridden
        )


def chosen_splits(args: argparse.Namespace) -> dict[str, Split]:
    """The parts that the flags name; single files win over those of the folder."""
    splits = find_splits(args.data_dir) if args.data_dir else {}
    for split in ("train", "val"):
        json_file, images = getattr(args, f"{split}_json"), getattr(args, f"{split}_images")
        if (json_file is None) != (images is None):
            given, missing = ("json", "images") if images is None else ("images", "json")
            raise ConfigError(f"--{split}-{given} needs --{split}-{missing}")
        if json_file is None:
            continue
        if not Path(images).is_dir():
            raise DatasetError(f"there is no folder of images {images} (--{split}-images)")
        splits[split] = Split(Path(json_file), Path(images))
    return splits


def read_categories(json_file: Path) -> dict[int, str]:
    """Names of the categories by id, as they stand in the file.

    Raises:
        DatasetError: the file is missing or has no categories.
    """
    content = read_coco(json_file)
    for number, category in enumerate(content["categories"]):
        fault = entry_fault("categories", category)
        if fault is not None:
            raise DatasetError(f"{json_file}: number {number} of its categories {fault}")
    if not content["categories"]:
        raise DatasetError(f"{json_file} has no categories")
    return {category["id"]: category["name"] for category in content["categories"]}


def check_equal(splits: dict[str, Split], categories: dict[str, dict[int, str]]) -> None:
    """Raise DatasetError if the two parts do not have the same categories with the same ids."""
    train, val = (set(categories[name].items()) for name in ("train", "val"))
    if train != val:
        only = [f"{names} only in {splits[name].json_file}" for name, names in
                (("train", sorted(train - val)), ("val", sorted(val - train))) if names]  # fmt: skip
        raise DatasetError(
            f"the two annotation files have different categories: {'; '.join(only)}; give both the same list"
        )


def fit_schedule(
    config: DictConfig, images: int, epochs: float | None, overridden: Collection[str]
) -> None:
    """Give a run over ``images`` images the epochs of the config, or others, and its proportions."""
    if not images:
        raise DatasetError("the training data set holds no images")
    if epochs is not None and not 0 < epochs < LARGEST:
        raise ConfigError(f"--epochs is {epochs:g}; it must be positive and finite")
    settings, before = config.train, config.train.max_iter
    if "train.max_iter" not in overridden:
        wanted = settings.get("epochs") if epochs is None else epochs
        if wanted is None:
            raise ConfigError(
                "the config does not say for how many epochs it trains (train.epochs); add --epochs N"
            )
        settings.max_iter = max(
            1, round(wanted * images / config.dataloader.train.total_batch_size)
        )
        settings.epochs = wanted
    factor = settings.max_iter / before
    for key, group in (("eval_period", settings), ("period", settings.checkpointer)):
        name = f"train.{'' if group is settings else 'checkpointer.'}{key}"
        if name not in overridden and group[key] > 0:
            group[key] = max(1, round(group[key] * factor))
    if "warmup_length" in config.lr_multiplier and "lr_multiplier.warmup_length" not in overridden:
        iterations = config.lr_multiplier.warmup_length * before
        config.lr_multiplier.warmup_length = min(iterations / settings.max_iter, LONGEST_WARMUP)
