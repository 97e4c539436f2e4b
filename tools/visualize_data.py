#!/usr/bin/env python
"""Draw a data set: the annotations as they are in the file, or what the training loader yields after augmentation.

tools/visualize_data.py --config-file configs/neu_det_r18.py --output drawn
tools/visualize_data.py --config-file F --data-dir data/mine --output drawn --augmented --count 50
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.config import instantiate
from detectron2.structures import BoxMode
from omegaconf import DictConfig
from PIL import Image
from tqdm import tqdm

from salience_detr.config import ConfigError, load_config
from salience_detr.data import DatasetError, DataWorkerError, ImageReadError, batches, read_image
from salience_detr.data.datasets import class_names_of
from salience_detr.engine.own_data import add_data_arguments, use_own_data
from salience_detr.utils.drawing import class_colors, draw_boxes
from salience_detr.utils.errors import one_line

Drawing = tuple[str, np.ndarray, list[list[float]], list[int]]


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True, metavar="FILE")
    parser.add_argument("--output", required=True, type=Path, metavar="DIR")
    parser.add_argument("--split", choices=("train", "val"), default="train")
    parser.add_argument(
        "--augmented", action="store_true", help="what the training loader yields, batch by batch"
    )
    parser.add_argument(
        "--count", type=int, default=20, metavar="N", help="images, at most (default: 20)"
    )
    add_data_arguments(parser)
    parser.add_argument("opts", nargs="*", metavar="key=value", help="overrides of the config")
    args = parser.parse_intermixed_args(argv)
    if args.count < 1:
        parser.error(f"--count is {args.count}; it must be at least 1")
    if args.augmented and args.split == "val":
        parser.error("--augmented goes with --split train: validation images are not augmented")
    return args


def annotated(config: DictConfig, split: str) -> Iterator[Drawing]:
    """Name, (H, W, 3) uint8 RGB image, boxes (absolute xyxy) and classes, as they are in the file."""
    dataset = config.dataloader["train" if split == "train" else "test"].dataset
    dataset.is_train = False  # crowds and boxes that training would clip or drop are shown
    for record in instantiate(dataset):
        annotations = record.get("annotations", [])
        boxes = [
            list(BoxMode.convert(x["bbox"], x["bbox_mode"], BoxMode.XYXY_ABS)) for x in annotations
        ]
        image = read_image(record["file_name"])
        yield (
            Path(record["file_name"]).stem,
            image,
            boxes,
            [x["category_id"] for x in annotations],
        )


def augmented(config: DictConfig) -> Iterator[Drawing]:
    """The same of each image that the first iterations of a training are given."""
    loader = instantiate(config.dataloader.train)
    for iteration, batch in enumerate(batches(loader, 0)):
        for x in batch:
            image = x["image"].permute(1, 2, 0).numpy()
            if config.dataloader.train.mapper.image_format == "BGR":
                image = image[..., ::-1]
            instances: Any = x["instances"]
            name = f"{iteration:04d}_{Path(x['file_name']).stem}"
            yield name, image, instances.gt_boxes.tensor.tolist(), instances.gt_classes.tolist()


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    try:
        config = load_config(args.config_file, args.opts)
        use_own_data(config, args, needed=(args.split,))
        drawings = augmented(config) if args.augmented else annotated(config, args.split)
        first = next(drawings, None)
        if first is None:
            raise DatasetError(f"the {args.split} data set holds no images")
        names = class_names_of(
            config.dataloader["train" if args.split == "train" else "test"].dataset.names
        )
        colors = class_colors(len(names))
        args.output.mkdir(parents=True, exist_ok=True)
        chosen = itertools.islice(itertools.chain([first], drawings), args.count)
        taken: Counter[str] = Counter()  # images of several folders may share their names
        for name, image, boxes, classes in tqdm(chosen, total=args.count, desc="images"):
            labels = [names[i] for i in classes]
            drawn = draw_boxes(image, list(np.asarray(boxes)), labels, [colors[i] for i in classes])
            taken[name] += 1
            path = args.output / (f"{name}_{taken[name]}.jpg" if taken[name] > 1 else f"{name}.jpg")
            Image.fromarray(drawn).save(path, quality=95, subsampling=0)
    except (ConfigError, DatasetError, DataWorkerError, ImageReadError, OSError) as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    print(
        f"{args.output}: {'as the training loader yields them' if args.augmented else 'as they are annotated'}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
