"""Convert annotations of Pascal VOC or YOLO to COCO's format, or split a file in that format."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Callable
from pathlib import Path

from salience_detr.cli.arguments import run_program
from salience_detr.cli.flags.convert_dataset import VOC_FRACTION, parse_args
from salience_detr.data.coco_format import DatasetError, read_coco
from salience_detr.data.endings import describe_others
from salience_detr.data.preparation import dataset_conversion
from salience_detr.data.preparation.conversion import Conversion, check_usable
from salience_detr.data.preparation.dataset_conversion import (
    ConvertedDataset,
    output_paths,
    write_dataset,
)
from salience_detr.data.preparation.files import find_others
from salience_detr.data.preparation.layouts import Split, count_located, find_splits
from salience_detr.data.preparation.splitting import split_coco


def convert_voc(args: argparse.Namespace) -> ConvertedDataset:
    """Convert a VOC data set as the arguments say."""
    classes = [name.strip() for name in args.classes.split(",") if name.strip()]
    return dataset_conversion.convert_voc(
        args.source,
        annotations=args.annotations,
        images=args.images,
        classes=classes,
        zero_based=args.zero_based,
        drop_difficult=args.drop_difficult,
        val_fraction=args.val_fraction,
        split_by=args.split_by,
        workers=args.workers,
    )


def convert_yolo(args: argparse.Namespace) -> ConvertedDataset:
    """Convert a YOLO data set as the arguments say."""
    return dataset_conversion.convert_yolo(
        args.source,
        val_fraction=args.val_fraction,
        split_by=args.split_by,
        workers=args.workers,
    )


def convert_coco(args: argparse.Namespace) -> ConvertedDataset:
    """Split a data set in COCO's format; categories, ids and all else stay."""
    source = find_single_file(args)
    if args.val_fraction is None:
        raise DatasetError(
            f"{source.json_file} is in COCO's format: add --val-fraction 0.2 to split it"
        )

    content = read_coco(source.json_file)
    parts = split_coco(content, source.json_file, args.val_fraction, args.split_by)
    names = [image["file_name"] for image in content["images"]]
    if not count_located(source.image_root, names):
        raise DatasetError(
            f"none of the {len(names)} images of {source.json_file}, such as {names[0]}, is in "
            f"{source.image_root}; name the folder that the names are relative to"
        )

    train, val = map(Conversion, parts)
    conversions = {"train": train, "val": val}
    return ConvertedDataset(conversions, dict.fromkeys(conversions, source.image_root))


def find_single_file(args: argparse.Namespace) -> Split:
    """Return the annotation file that is to be split, and the folder of its images.

    Raises:
        DatasetError: something is not there, or the data set is split already.
    """
    if not args.source.is_dir():
        if args.images is None:
            raise DatasetError(f"name the folder of the images, after {args.source}")
        if not args.images.is_dir():
            raise DatasetError(f"there is no folder of images {args.images}")
        return Split(args.source, args.images)

    found = find_splits(args.source)
    if list(found) != ["train"]:
        files = " and ".join(str(part.json_file) for part in found.values())
        raise DatasetError(f"{args.source} is split already: it has {files}")
    return Split(found["train"].json_file, args.images or found["train"].image_root)


CONVERTERS: dict[str, Callable[[argparse.Namespace], ConvertedDataset]] = {
    "voc": convert_voc,
    "yolo": convert_yolo,
    "coco": convert_coco,
}


def write(dataset: ConvertedDataset, output: Path) -> None:
    """Write and report the splits, and print the flags of train and check for them."""
    written = write_dataset(dataset, output)
    for name, path in written.items():
        print(f"{path}: {dataset.conversions[name].report()}")

    for remark in dataset.remarks:
        print(remark)
    for folder in sorted(set(dataset.image_roots.values())):
        others = find_others(folder)
        if others:
            print(describe_others(folder, others, "images"))
    val = dataset.conversions.get("val")
    if val is not None and not val.content["annotations"]:
        print("warning: the part for validation has no boxes, so that nothing can be measured")

    # Without a part for validation the test part takes its place.
    files: list[str] = []
    for name in ("train", "val" if val is not None else "test"):
        if name in written:
            option = name.replace("test", "val")
            files += [f"--{option}-json", str(written[name])]
            files += [f"--{option}-images", str(dataset.image_roots[name])]
    fraction: list[str] = []
    if written.keys() == {"train"}:
        fraction = ["--val-fraction", str(VOC_FRACTION)]

    data_dir = shlex.join(["--data-dir", str(output), *fraction])
    print(f"train, val, check and visualize data take it with {data_dir}")
    print(f"or, file by file, with {shlex.join([*files, *fraction])}")


def run(args: argparse.Namespace) -> None:
    """Convert all splits, and write them if something is left of each."""
    earlier = [path for path in output_paths(args.output).values() if path.exists()]
    if earlier and not args.overwrite:
        raise DatasetError(
            f"{earlier[0]} is there already: add --overwrite to replace the earlier conversion, or "
            "choose another --output"
        )

    dataset = CONVERTERS[args.format](args)
    check_usable(dataset.conversions)
    write(dataset, args.output)


def main(argv: list[str] | None = None) -> int:
    return run_program(run, parse_args(argv))
