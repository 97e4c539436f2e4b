#!/usr/bin/env python
"""Convert annotations of Pascal VOC or YOLO to COCO's format.

tools/convert_dataset.py voc VOCdevkit/VOC2007 --output data/voc
tools/convert_dataset.py yolo data.yaml --output data/mine

writes OUTPUT/annotations/instances_SPLIT.json for each split that is found, and says where the pictures are.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
from collections.abc import Iterator
from pathlib import Path

from salience_detr.data.conversion import (
    Conversion,
    convert_voc,
    convert_yolo,
    read_yolo_description,
    yolo_labels_folder,
)
from salience_detr.data.datasets import DatasetError
from salience_detr.files import written_whole


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    formats = parser.add_subparsers(dest="format", required=True)
    voc = formats.add_parser("voc", help="XML files")
    voc.add_argument("source", type=Path, help="a folder with Annotations, JPEGImages and ImageSets/Main/SPLIT.txt")
    voc.add_argument("--annotations", type=Path, help="folder of the XML files (default: SOURCE/Annotations)")
    voc.add_argument("--images", type=Path, help="folder of the pictures (default: SOURCE/JPEGImages)")
    voc.add_argument("--classes", help="names, separated by commas, in the order of their ids (default: all, sorted)")
    voc.add_argument(
        "--val-fraction", type=float, default=0.2, help="part that is drawn for validation where no lists of splits are"
    )
    voc.add_argument("--zero-based", action="store_true", help="corners count from 0, not, as VOC's, from 1")
    voc.add_argument("--drop-difficult", action="store_true", help="leave out objects that are marked difficult")
    yolo = formats.add_parser("yolo", help="text files")
    yolo.add_argument("source", type=Path, help="data.yaml, or the folder that it is in")
    for one in (voc, yolo):
        one.add_argument("--output", type=Path, required=True, metavar="DIR")
        one.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes that read")
    return parser.parse_args(argv)


def voc_splits(args: argparse.Namespace) -> Iterator[tuple[str, Path, Conversion]]:
    """Name, folder of the pictures and content of each split; classes are the same in all."""
    annotations = args.annotations or args.source / "Annotations"
    images = args.images or args.source / "JPEGImages"
    for folder in (annotations, images):
        if not folder.is_dir():
            raise DatasetError(f"there is no folder {folder}; name it with --annotations or --images")
    options = {"zero_based": args.zero_based, "drop_difficult": args.drop_difficult, "workers": args.workers}
    classes = args.classes.split(",") if args.classes else []
    if not classes:  # a class may be missing from a split
        everything = convert_voc(annotations, images, **options)
        classes = [category["name"] for category in everything.content["categories"]]
    for name, stems in split_stems(args.source, annotations, args.val_fraction).items():
        yield name, images, convert_voc(annotations, images, classes=classes, stems=stems, **options)


def split_stems(source: Path, annotations: Path, val_fraction: float) -> dict[str, list[str]]:
    """Names of the files of each split: those of VOC's lists or, where there are none, drawn with a fixed seed.

    Raises:
        DatasetError: the fraction is not between 0 and 1.
    """
    lists = {name: source / "ImageSets" / "Main" / f"{name}.txt" for name in ("train", "val", "test")}
    splits = {
        name: [line.split()[0] for line in path.read_text().splitlines() if line.strip()]
        for name, path in lists.items()
        if path.is_file()
    }
    if splits:
        return splits
    if not 0 <= val_fraction < 1:
        raise DatasetError(f"--val-fraction is {val_fraction}; it lies in [0, 1)")
    stems = sorted(path.stem for path in annotations.glob("*.xml"))
    drawn = set(random.Random(0).sample(stems, round(val_fraction * len(stems))))
    return {"train": [x for x in stems if x not in drawn]} | ({"val": sorted(drawn)} if drawn else {})


def yolo_splits(args: argparse.Namespace) -> Iterator[tuple[str, Path, Conversion]]:
    """Name, folder of the pictures and content of each split."""
    source = args.source
    if source.is_dir():
        found = sorted([*source.glob("*.yaml"), *source.glob("*.yml")])
        if not found:
            raise DatasetError(f"there is no data.yaml in {source}; it names the classes and the splits")
        source = found[0]
    classes, folders = read_yolo_description(source)
    for name, folder in folders.items():
        yield name, folder, convert_yolo(folder, yolo_labels_folder(folder), classes, workers=args.workers)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    flags = []
    try:
        for name, images, conversion in (voc_splits if args.format == "voc" else yolo_splits)(args):
            path = args.output / "annotations" / f"instances_{name}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            with written_whole(path) as temporary:
                temporary.write_text(json.dumps(conversion.content))
            print(f"{path}: {conversion.report()}")
            flags.append(f"--{name}-json {path} --{name}-images {images}")
    except (DatasetError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print("train_net.py takes them with " + " ".join(flag for flag in flags if not flag.startswith("--test")))
    return 0


if __name__ == "__main__":
    sys.exit(main())
