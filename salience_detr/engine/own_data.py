"""Own data for a config: data sets, classes, and a schedule of the same number of epochs."""

from __future__ import annotations

import argparse
from collections.abc import Collection
from pathlib import Path

from omegaconf import DictConfig

from salience_detr.config import ConfigError
from salience_detr.data.classes import ClassList
from salience_detr.data.coco_dataset import register_coco_dataset
from salience_detr.data.coco_format import (
    DatasetError,
    entry_fault,
    is_whole,
    names_by_id,
    read_coco,
)
from salience_detr.data.datasets import as_list, dataset_classes
from salience_detr.data.preparation.data_dir import open_data_dir
from salience_detr.data.preparation.layouts import Split
from salience_detr.data.split_classes import check_splits
from salience_detr.engine.batch_size import use_batch_size
from salience_detr.engine.run_length import count_images, fit_schedule, set_epochs
from salience_detr.engine.validation_split import split_for_validation


def use_own_data(
    config: DictConfig,
    args: argparse.Namespace,
    overridden: Collection[str] = (),
    needed: Collection[str] = ("train", "val"),
) -> None:
    """Change a config, in place, as the flags of the command line say; without flags it stays.

    Epochs without data are passes over the data set of the config.

    The classes and their number come from the annotation files. The number of iterations follows
    from the epochs, the number of images and the batch size. Evaluations, checkpoints and the steps
    of the learning rate keep their places in the schedule.

    Args:
        config: of a LazyConfig file, overrides applied.
        args: of the command line, see ``Parser.add_data``.
        overridden: keys that the user set on the command line, which stay.
        needed: the splits that there must be; without "train" the schedule is left alone.

    Raises:
        DatasetError, ConfigError: the files are not there or not right, or flags are missing.
    """
    splits = chosen_splits(args)
    if args.val_fraction is not None or args.split_by is not None:
        splits = split_for_validation(config, args, splits)
    if not splits:
        if "train" in needed:
            batch_size = config.dataloader.train.total_batch_size
            use_batch_size(config, args)
            set_epochs(config, args.epochs, overridden, batch_size=batch_size)
        if args.drop_empty_categories:
            raise ConfigError("--drop-empty-categories goes with --data-dir or --train-json")
        return
    for name in needed:
        if name not in splits:
            remedy = f"add --{name}-json FILE --{name}-images DIR"
            if name == "val" and "train" in splits:
                remedy += f", or --val-fraction 0.2 to split {splits['train'].json_file}"
            raise ConfigError(f"no {name} data: {remedy}")

    # The data set is registered under the name of its file when it is loaded.
    categories = {}
    for name, split in splits.items():
        categories[name] = read_categories(split.json_file, keep=name in needed)
        dataset = config.dataloader["train" if name == "train" else "test"].dataset
        dataset.names = str(split.json_file)
        dataset.json_file = str(split.json_file)
        dataset.image_root = str(split.image_root)

    if args.drop_empty_categories:
        drop_empty_categories(config, splits, categories)
    classes = {}
    for name, split in splits.items():
        classes[name] = ClassList.from_categories(categories[name], str(split.json_file))

    # An evaluation goes by the names alone.
    if len(splits) == 2 and "train" in needed:
        check_splits(classes["train"], classes["val"])
    if "model.num_classes" not in overridden:
        config.model.num_classes = len(next(iter(classes.values())).names)

    # An evaluation has no schedule.
    if "train" in needed:
        use_batch_size(config, args)
        num_images = len(read_coco(splits["train"].json_file, keep=True)["images"])
        num_test_images = count_images(config.dataloader.test.dataset) or 0
        fit_schedule(config, num_images, args.epochs, overridden, num_test_images=num_test_images)


def chosen_splits(args: argparse.Namespace) -> dict[str, Split]:
    """Return the splits that the flags name; single files win over those of the folder."""
    splits: dict[str, Split] = {}
    if args.data_dir:
        draw = args.val_fraction is None and args.val_json is None
        splits = open_data_dir(args.data_dir, draw=draw)

    for name in ("train", "val"):
        json_file = getattr(args, f"{name}_json")
        images = getattr(args, f"{name}_images")
        if json_file is None and images is None:
            continue

        if json_file is None or images is None:
            raise ConfigError(f"--{name}-json and --{name}-images go together: add the other one")
        if not Path(images).is_dir():
            raise DatasetError(f"there is no folder of images {images} (--{name}-images)")
        splits[name] = Split(Path(json_file), Path(images))
    return splits


def training_classes(config: DictConfig, args: argparse.Namespace) -> ClassList | None:
    """Return the classes of the training data, for weights that do not name their classes.

    They are unknown where the data are not at hand, or do not belong to the model.
    """
    splits = chosen_splits(args)
    if splits and "train" not in splits:
        return None

    dataset = config.dataloader.train.dataset
    if dataset.get("json_file") and Path(dataset.json_file).is_file():
        dropped = dataset.get("drop_categories", ())
        name = as_list(dataset.names)[0]
        register_coco_dataset(name, dataset.json_file, dataset.image_root, dropped)

    classes = dataset_classes(dataset.names)
    if classes is None or len(classes) != config.model.get("num_classes"):
        return None
    return classes


def read_categories(json_file: Path, *, keep: bool) -> dict[int, str]:
    """Return the names of the categories of an annotation file by id.

    With ``keep`` the content stays for the loading of the data.

    Raises:
        DatasetError: the file is missing or has no categories.
    """
    content = read_coco(json_file, keep=keep, lists=("images", "categories"))
    categories = content["categories"]
    for number, category in enumerate(categories):
        fault = entry_fault("categories", category)
        if fault is not None:
            raise DatasetError(
                f"{json_file}: number {number} of its categories {fault}; tools/check_dataset.py "
                "lists all such mistakes, and repairs them with --fix"
            )

    if not categories:
        raise DatasetError(f"{json_file} has no categories")
    return names_by_id(categories)


def drop_empty_categories(
    config: DictConfig, splits: dict[str, Split], categories: dict[str, dict[int, str]]
) -> None:
    """Leave out the categories, by name, that have no box in any of the splits, in place.

    Raises:
        DatasetError: there are no boxes at all.
    """
    with_boxes = set()
    for name, split in splits.items():
        content = read_coco(split.json_file, keep=True, lists=("images", "categories"))
        for annotation in content.get("annotations", []):
            if isinstance(annotation, dict) and is_whole(annotation.get("category_id")):
                with_boxes.add(categories[name].get(annotation["category_id"]))

    for name, names in categories.items():
        empty = [i for i, category in names.items() if category not in with_boxes]
        if len(empty) == len(names):
            raise DatasetError(f"no category of {splits[name].json_file} has a box in any split")
        for category_id in empty:
            del names[category_id]
        dataset = config.dataloader["train" if name == "train" else "test"].dataset
        dataset.drop_categories = empty
