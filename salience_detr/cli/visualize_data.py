"""Draw a data set: the annotations of the file, or what the training loader yields.

tools/visualize_data.py --config-file configs/neu_det_r18.py --output drawn
tools/visualize_data.py --config-file F --data-dir data/mine --output drawn --augmented --count 50
"""

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

from salience_detr.cli.arguments import Parser, number, run_program
from salience_detr.config import load_config
from salience_detr.data import DatasetError, batches, read_image
from salience_detr.data.datasets import class_names_of
from salience_detr.data.depth import choose_from_files
from salience_detr.data.value_range import AUTO, ValueRange
from salience_detr.engine.own_data import add_data_arguments, use_own_data
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


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(description=__doc__)
    parser.add_config()
    add = parser.add_argument
    add("--output", required=True, type=Path, metavar="DIR")
    add("--split", choices=LOADERS, default="train")
    add("--augmented", action="store_true", help="draw what the training loader yields")
    count = number(int, 1)
    add("--count", type=count, default=20, metavar="N", help="images, at most (default: 20)")
    add_data_arguments(parser)

    args = parser.parse(argv)
    if args.augmented and args.split == "val":
        parser.error("--augmented goes with --split train: validation images are not augmented")
    return args


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


def draw_samples(args: argparse.Namespace) -> None:
    """Draw images of the data set into the output folder.

    Raises:
        ConfigError, DatasetError, DataWorkerError, ImageReadError, OSError: the config, the data or
            the output folder cannot be used.
    """
    check_output_dir(args.output, option="--output")
    config = load_config(args.config_file, args.opts, trust=args.trust_config)
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
    return run_program(draw_samples, parse_args(argv))
