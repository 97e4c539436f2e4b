"""Draw a data set: the annotations of the file, or what the training loader yields."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from detectron2.config import instantiate
from detectron2.structures import BoxMode
from omegaconf import DictConfig
from tqdm import tqdm

from salience_detr.cli.arguments import run_program
from salience_detr.cli.flags.visualize_data import parse_args
from salience_detr.config import load_config
from salience_detr.data import DatasetError, batches, read_image
from salience_detr.data.datasets import class_names_of
from salience_detr.data.depth import choose_from_files
from salience_detr.data.image_size import set_image_size
from salience_detr.data.value_range import AUTO, ValueRange
from salience_detr.engine.augmentation_choice import choose_augmentation
from salience_detr.engine.own_data import use_own_data
from salience_detr.utils.drawing import class_colors, draw_boxes
from salience_detr.utils.files import UsedPaths, check_output_dir, write_image

LOADERS = {"train": "train", "val": "test"}  # detectron2's names of the splits


@dataclass(frozen=True)
class Sample:
    """An image of the data set and its ground truth.

    Attributes:
        name: stem of the file of its drawing.
        image: (H, W, 3) uint8 RGB.
        boxes: (G, 4) absolute xyxy.
        classes: G class indices.
    """

    name: str
    image: np.ndarray
    boxes: np.ndarray
    classes: list[int]


def read_annotated(loader: DictConfig) -> Iterator[Sample]:
    """Yield the images of a data set with the annotations as they are in the file."""
    loader.dataset.is_train = False  # training would clip boxes, and drop crowds and empty boxes
    records = instantiate(loader.dataset)
    value_range = ValueRange(loader.mapper.get("value_range", AUTO))
    choose_from_files(value_range, [record["file_name"] for record in records])

    for record in records:
        boxes = []
        classes = []
        for annotation in record.get("annotations", []):
            box = BoxMode.convert(annotation["bbox"], annotation["bbox_mode"], BoxMode.XYXY_ABS)
            boxes.append(list(box))
            classes.append(annotation["category_id"])

        # As the training reads it: turned by its EXIF orientation.
        path = record["file_name"]
        image = read_image(path, value_range=value_range)
        yield Sample(Path(path).stem, image, np.asarray(boxes), classes)


def read_augmented(loader: DictConfig) -> Iterator[Sample]:
    """Yield the images of the first training iterations, as the model is given them."""
    is_bgr = loader.mapper.image_format == "BGR"
    for iteration, batch in enumerate(batches(instantiate(loader), 0)):
        for inputs in batch:
            # The loader yields (3, H, W) in the order of channels that the model takes.
            image = inputs["image"].permute(1, 2, 0).numpy()
            if is_bgr:
                image = image[..., ::-1]

            instances = inputs["instances"]
            yield Sample(
                name=f"{iteration:04d}_{Path(inputs['file_name']).stem}",
                image=image,
                boxes=instances.gt_boxes.tensor.numpy(),
                classes=instances.gt_classes.tolist(),
            )


def run(args: argparse.Namespace) -> None:
    """Draw images of the data set into the output folder.

    Raises:
        ConfigError, DatasetError, DataWorkerError, ImageReadError, OSError: the config, the data or
            the output folder cannot be used.
    """
    check_output_dir(args.output, option="--output")
    config = load_config(args.config_file, args.opts, trust=args.trust_config)
    if args.image_size is not None:
        print(set_image_size(config, args.image_size))
    overridden = {word.partition("=")[0].lstrip("+") for word in args.opts}
    choose_augmentation(config, args.augmentation, overridden)
    use_own_data(config, args, needed=(args.split,))
    loader = config.dataloader[LOADERS[args.split]]
    samples = read_augmented(loader) if args.augmented else read_annotated(loader)

    # Class names are known once the data set is loaded.
    first = next(samples, None)
    if first is None:
        raise DatasetError(f"the {args.split} data set holds no images")
    names = class_names_of(loader.dataset.names)
    colors = class_colors(len(names))

    # Images in several folders may have the same name.
    used = UsedPaths()
    chosen = itertools.islice(itertools.chain([first], samples), args.count)
    for sample in tqdm(chosen, total=args.count, desc="images"):
        labels = [names[i] for i in sample.classes]
        box_colors = [colors[i] for i in sample.classes]
        drawing = draw_boxes(sample.image, list(sample.boxes), labels, box_colors)

        write_image(used.unused_path(args.output / f"{sample.name}.jpg"), drawing)

    source = "as the training loader yields them" if args.augmented else "as they are annotated"
    print(f"{args.output}: {source}")


def main(argv: list[str] | None = None) -> int:
    return run_program(run, parse_args(argv))
