#!/usr/bin/env python
"""Convert annotations of Pascal VOC or YOLO to COCO's format.

tools/convert_dataset.py voc VOCdevkit/VOC2007 --output data/voc
tools/convert_dataset.py yolo data.yaml --output data/mine

writes OUTPUT/annotations/instances_SPLIT.json for each split, and prints where the images are.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from salience_detr.cli.arguments import Parser, number, run_program
from salience_detr.data.coco_format import DatasetError
from salience_detr.data.preparation.conversion import Conversion
from salience_detr.data.preparation.voc import convert_voc, find_splits, images_without_xml
from salience_detr.data.preparation.yolo import (
    convert_yolo,
    find_description,
    find_labels,
    label_candidates,
    read_description,
)
from salience_detr.utils.files import write_text


@dataclass(frozen=True)
class ConvertedSplit:
    """Split of a data set.

    Attributes:
        name: "train", "val" or "test".
        image_root: folder of the images.
        conversion: its content in COCO's format.
    """

    name: str
    image_root: Path
    conversion: Conversion


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(description=__doc__)
    formats = parser.add_subparsers(dest="format", required=True)

    voc = formats.add_parser("voc", help="XML files")
    add = voc.add_argument
    add("source", type=Path, help="folder with Annotations, JPEGImages, ImageSets/Main/SPLIT.txt")
    add("--annotations", type=Path, help="folder of the XML files (default: SOURCE/Annotations)")
    add("--images", type=Path, help="folder of the images (default: SOURCE/JPEGImages)")
    add("--classes", default="", help="A,B,... in the order of their ids (default: all, sorted)")
    add("--val-fraction", type=float, default=0.2, help="part drawn for validation without lists")
    add("--zero-based", action="store_true", help="corners count from 0, not, as VOC's, from 1")
    add("--drop-difficult", action="store_true", help="leave out objects that are difficult")

    yolo = formats.add_parser("yolo", help="text files")
    yolo.add_argument("source", type=Path, help="data.yaml, or the folder that it is in")

    workers = os.cpu_count() or 1
    for add in (voc.add_argument, yolo.add_argument):
        add("--output", type=Path, required=True, metavar="DIR")
        add("--workers", type=number(int, 0), default=workers, help="processes that read")
    return parser.parse_args(argv)


def voc_splits(args: argparse.Namespace) -> Iterator[ConvertedSplit]:
    """Convert the splits of a VOC data set; all get the same classes."""
    annotations = args.annotations or args.source / "Annotations"
    images = args.images or args.source / "JPEGImages"
    for folder in (annotations, images):
        if not folder.is_dir():
            raise DatasetError(f"there is no folder {folder}: use --annotations or --images")

    convert = partial(
        convert_voc, annotations, images,
        zero_based=args.zero_based, drop_difficult=args.drop_difficult, workers=args.workers,
    )  # fmt: skip
    classes = [name.strip() for name in args.classes.split(",") if args.classes]
    # A class may be missing from a split.
    if not classes:
        classes = [category["name"] for category in convert().content["categories"]]

    splits = find_splits(args.source, annotations, args.val_fraction)
    for name, files in splits.items():
        yield ConvertedSplit(name, images, convert(classes=classes, files=files))

    unknown = images_without_xml(annotations, images)
    if unknown:
        print(f"{len(unknown)} images have no .xml file and are in no set ({unknown[0]}, ...)")


def yolo_splits(args: argparse.Namespace) -> Iterator[ConvertedSplit]:
    """Convert the splits of a YOLO data set."""
    description = read_description(find_description(args.source))
    for name, images in description.splits.items():
        # The names of the images are relative to the folder that all of them are in.
        folders = {str(image.parent) for image in images}
        root = Path(os.path.commonpath(folders)) if folders else args.source
        conversion = convert_yolo(images, root, description, workers=args.workers)

        # Without any labels the folders are probably wrong; a test part may have none.
        if name != "test" and not any(map(find_labels, images)):
            places = " and ".join(map(str, label_candidates(images[0])))
            raise DatasetError(
                f"none of the {len(images)} images of {name} has a file of labels; "
                f"for {images[0]} looked for {places}"
            )
        yield ConvertedSplit(name, root, conversion)


def write_split(split: ConvertedSplit, output: Path) -> list[str]:
    """Write and report a split, and return train_net.py's arguments for it."""
    path = output / "annotations" / f"instances_{split.name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(split.conversion.content))

    print(f"{path}: {split.conversion.report()}")
    # Without a validation part the test part takes its place.
    option = split.name.replace("test", "val")
    return [f"--{option}-json", str(path), f"--{option}-images", str(split.image_root)]


def run(args: argparse.Namespace) -> None:
    """Convert all splits, and print train_net.py's arguments for them."""
    convert = {"voc": voc_splits, "yolo": yolo_splits}[args.format]
    train_arguments = {}
    for split in convert(args):
        train_arguments[split.name] = write_split(split, args.output)

    if "val" in train_arguments:
        train_arguments.pop("test", None)
    words = itertools.chain(*train_arguments.values())
    print(f"train_net.py takes them with {shlex.join(words)}")


def main(argv: list[str] | None = None) -> int:
    return run_program(run, parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
