#!/usr/bin/env python
"""Convert annotations of Pascal VOC or YOLO to COCO's format.

tools/convert_dataset.py voc VOCdevkit/VOC2007 --output data/voc
tools/convert_dataset.py yolo data.yaml --output data/mine

writes OUTPUT/annotations/instances_SPLIT.json for each split that is found, and says where the images are.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

from salience_detr.data.coco_format import DatasetError
from salience_detr.data.preparation.conversion import Conversion
from salience_detr.data.preparation.voc import convert_voc, find_files, images_without_file
from salience_detr.data.preparation.yolo import convert_yolo, label_candidates, read_description
from salience_detr.utils.files import written_whole


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    formats = parser.add_subparsers(dest="format", required=True)
    voc = formats.add_parser("voc", help="XML files")
    voc.add_argument(
        "source",
        type=Path,
        help="a folder with Annotations, JPEGImages and ImageSets/Main/SPLIT.txt",
    )
    voc.add_argument(
        "--annotations", type=Path, help="folder of the XML files (default: SOURCE/Annotations)"
    )
    voc.add_argument(
        "--images", type=Path, help="folder of the images (default: SOURCE/JPEGImages)"
    )
    voc.add_argument(
        "--classes",
        help="names, separated by commas, in the order of their ids (default: all, sorted)",
    )
    voc.add_argument(
        "--val-fraction",
        type=float,
        default=0.2,
        help="part that is drawn for validation where no lists of splits are",
    )
    voc.add_argument(
        "--zero-based", action="store_true", help="corners count from 0, not, as VOC's, from 1"
    )
    voc.add_argument(
        "--drop-difficult", action="store_true", help="leave out objects that are marked difficult"
    )
    yolo = formats.add_parser("yolo", help="text files")
    yolo.add_argument("source", type=Path, help="data.yaml, or the folder that it is in")
    for one in (voc, yolo):
        one.add_argument("--output", type=Path, required=True, metavar="DIR")
        one.add_argument(
            "--workers", type=int, default=os.cpu_count() or 1, help="processes that read"
        )
    args = parser.parse_args(argv)
    if args.workers < 0:
        parser.error(f"--workers is {args.workers}; it must be at least 0")
    return args


def voc_splits(args: argparse.Namespace) -> Iterator[tuple[str, Path, Conversion]]:
    """Name, folder of the images and content of each split; classes are the same in all."""
    annotations = args.annotations or args.source / "Annotations"
    images = args.images or args.source / "JPEGImages"
    for folder in (annotations, images):
        if not folder.is_dir():
            raise DatasetError(
                f"there is no folder {folder}; name it with --annotations or --images"
            )
    options = {
        "zero_based": args.zero_based,
        "drop_difficult": args.drop_difficult,
        "workers": args.workers,
    }
    classes = [name.strip() for name in args.classes.split(",")] if args.classes else []
    if not classes:  # a class may be missing from a split
        everything = convert_voc(annotations, images, **options)
        classes = [category["name"] for category in everything.content["categories"]]
    splits = split_stems(args.source, annotations, args.val_fraction)
    for name, stems in splits.items():
        yield (
            name,
            images,
            convert_voc(annotations, images, classes=classes, stems=stems, **options),
        )
    unknown = images_without_file(annotations, images)
    if unknown:
        print(f"{len(unknown)} images have no .xml file and are in no set ({unknown[0]}, ...)")


def split_stems(source: Path, annotations: Path, val_fraction: float) -> dict[str, list[str]]:
    """Names of the files of each split: those of VOC's lists or, where there are none, drawn with a fixed seed.

    Raises:
        DatasetError: the fraction is not between 0 and 1.
    """
    folder = source / "ImageSets" / "Main"
    names = {"train": ("train", "trainval"), "val": ("val",), "test": ("test",)}
    lists = {
        split: next(
            (path for path in (folder / f"{name}.txt" for name in choices) if path.is_file()), None
        )
        for split, choices in names.items()
    }
    splits = {
        name: read_list(path, annotations) for name, path in lists.items() if path is not None
    }
    if splits:
        return splits
    if not 0 <= val_fraction < 1:
        raise DatasetError(f"--val-fraction is {val_fraction}; it lies in [0, 1)")
    stems = [
        path.relative_to(annotations).with_suffix("").as_posix() for path in find_files(annotations)
    ]
    drawn = set(random.Random(0).sample(stems, round(val_fraction * len(stems))))
    return {"train": [x for x in stems if x not in drawn]} | (
        {"val": sorted(drawn)} if drawn else {}
    )


def read_list(path: Path, annotations: Path) -> list[str]:
    """The stems of a list of a split, whose lines may have an ending, or a second word such as VOC's 1 and -1."""
    stems = []
    for line in path.read_text(encoding="utf-8-sig").splitlines():
        if not line.strip():
            continue
        words = (line.strip(), line.split()[0])
        spellings = [x for word in words for x in (word, os.path.splitext(word)[0])]
        stems.append(next((x for x in spellings if (annotations / f"{x}.xml").is_file()), words[1]))
    return stems


def yolo_splits(args: argparse.Namespace) -> Iterator[tuple[str, Path, Conversion]]:
    """Name, folder of the images and content of each split."""
    description = read_description(description_file(args.source))
    for name, images in description.splits.items():
        folders = {str(image.parent) for image in images}
        root = Path(os.path.commonpath(folders)) if folders else args.source
        conversion = convert_yolo(
            images,
            root,
            description.names,
            has_keypoints=description.has_keypoints,
            workers=args.workers,
        )
        if not conversion.num_labeled and name != "test":
            raise DatasetError(
                f"none of the {len(images)} images of {name} has a file of labels; for {images[0]} looked for "
                f"{' and '.join(str(path) for path in label_candidates(images[0]))}"
            )
        yield name, root, conversion


def description_file(source: Path) -> Path:
    """The data.yaml, or the folder that it is in.

    Raises:
        DatasetError: there is none, or several of other names.
    """
    if not source.is_dir():
        return source
    found = sorted([*source.glob("*.yaml"), *source.glob("*.yml")])
    named = [path for path in found if path.stem in ("data", "dataset")]
    if len(named or found) != 1:
        what = (
            f"several .yaml files in {source}; name one" if found else f"no data.yaml in {source}"
        )
        raise DatasetError(f"there is {what}: it tells the classes and the splits")
    return (named or found)[0]


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    flags = {}
    try:
        for name, images, conversion in (voc_splits if args.format == "voc" else yolo_splits)(args):
            path = args.output / "annotations" / f"instances_{name}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            with written_whole(path) as temporary:
                temporary.write_text(json.dumps(conversion.content))
            print(f"{path}: {conversion.report()}")
            flags[name] = shlex.join([f"--{name}-json", str(path), f"--{name}-images", str(images)])
    except (DatasetError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if "val" not in flags and "test" in flags:
        flags["val"] = flags["test"].replace("--test-", "--val-")
    print(
        "train_net.py takes them with "
        + " ".join(flags[name] for name in ("train", "val") if name in flags)
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
