"""Convert annotations of Pascal VOC or YOLO to COCO's format, or split a file in that format."""

from __future__ import annotations

import argparse
import itertools
import json
import shlex
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from salience_detr.cli.arguments import run_program
from salience_detr.cli.flags.convert_dataset import VOC_FRACTION, parse_args
from salience_detr.data.coco_format import DatasetError, read_coco
from salience_detr.data.endings import describe_others
from salience_detr.data.preparation.conversion import (
    Conversion,
    ImageLabels,
    assemble,
    check_usable,
    draw_labels,
)
from salience_detr.data.preparation.files import find_others
from salience_detr.data.preparation.layouts import Split, count_located
from salience_detr.data.preparation.layouts import find_splits as find_coco_splits
from salience_detr.data.preparation.splitting import split_coco
from salience_detr.data.preparation.voc import find_xml_files, read_voc
from salience_detr.data.preparation.voc_layout import ImageIndex, find_folders, find_splits
from salience_detr.data.preparation.yolo import common_folder, read_yolo
from salience_detr.data.preparation.yolo_layout import find_description, read_description
from salience_detr.utils.files import write_text

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class ConvertedDataset:
    """Data set in COCO's format.

    Attributes:
        conversions: content by split: "train", "val" or "test".
        image_roots: folder of the images by split.
        remarks: what else the user should know.
    """

    conversions: dict[str, Conversion]
    image_roots: dict[str, Path]
    remarks: list[str] = field(default_factory=list)


def split(
    splits: dict[str, list[ImageLabels]], args: argparse.Namespace
) -> dict[str, list[ImageLabels]]:
    """Draw a part of "train" for validation, if the user asks for it.

    Raises:
        DatasetError: there is a part for validation, or none to draw it from.
    """
    if args.val_fraction is None:
        return splits
    if "val" in splits or "train" not in splits:
        raise DatasetError(
            f"--val-fraction {args.val_fraction:g} splits a data set without a part for "
            f"validation, but {args.source} has {' and '.join(splits)}: leave it out"
        )
    return {**splits, **draw_labels(splits["train"], args.val_fraction, args.split_by)}


def convert_voc(args: argparse.Namespace) -> ConvertedDataset:
    """Convert a VOC data set; all splits get the same classes."""
    folders = find_folders(args.source, args.annotations, args.images)
    all_files = find_xml_files(folders.annotations)
    splits = find_splits(folders, all_files)
    # Lists may name files that are not there.
    files = sorted({*all_files, *itertools.chain(*splits.values())})

    index = ImageIndex(folders.images)
    labels = read_voc(
        folders, files, index,
        zero_based=args.zero_based, drop_difficult=args.drop_difficult, workers=args.workers,
    )  # fmt: skip
    split_labels = {name: [labels[path] for path in paths] for name, paths in splits.items()}

    # 0 asks for no validation.
    if not splits:
        split_labels = {"train": list(labels.values())}
        num_images = sum(image.size is not None for image in labels.values())
        if args.val_fraction is None and round(VOC_FRACTION * num_images):
            args.val_fraction = VOC_FRACTION
    if args.val_fraction != 0:
        split_labels = split(split_labels, args)

    # A class may be missing from a split.
    classes = [name.strip() for name in args.classes.split(",") if name.strip()]
    occurring = set().union(*(image.classes for image in labels.values()))
    names = dict(enumerate(classes or sorted(map(str, occurring)), 1))
    category_ids = {name: category_id for category_id, name in names.items()}
    conversions = {}
    for name, images_labels in split_labels.items():
        conversions[name] = assemble(images_labels, category_ids, names)

    remarks = []
    used = {image.file_name for image in labels.values()}
    unknown = [str(file) for file in index.files if str(file) not in used]
    if unknown:
        example = folders.images / unknown[0]
        remarks.append(
            f"{len(unknown)} images have no .xml file and are in no set ({example}, ...)"
        )
    return ConvertedDataset(conversions, dict.fromkeys(conversions, folders.images), remarks)


def convert_yolo(args: argparse.Namespace) -> ConvertedDataset:
    """Convert a YOLO data set, whose category ids are YOLO's indices, from 0."""
    root = args.source if args.source.is_dir() else args.source.parent
    description = read_description(find_description(args.source), root)

    # The names of the images are relative to the folder that all of them are in.
    roots = {name: common_folder(images) for name, images in description.splits.items()}
    splits = split(read_yolo(description, roots, workers=args.workers), args)
    if len(splits) > len(roots):
        roots["val"] = roots["train"]

    category_ids = {index: index for index in description.names}
    conversions = {}
    for name, labels in splits.items():
        conversions[name] = assemble(labels, category_ids, description.names)
    return ConvertedDataset(conversions, roots, description.remarks)


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

    found = find_coco_splits(args.source)
    if list(found) != ["train"]:
        files = " and ".join(str(part.json_file) for part in found.values())
        raise DatasetError(f"{args.source} is split already: it has {files}")
    return Split(found["train"].json_file, args.images or found["train"].image_root)


CONVERTERS: dict[str, Callable[[argparse.Namespace], ConvertedDataset]] = {
    "voc": convert_voc,
    "yolo": convert_yolo,
    "coco": convert_coco,
}


def output_paths(output: Path) -> dict[str, Path]:
    """Return the annotation file of each split."""
    return {name: output / "annotations" / f"instances_{name}.json" for name in SPLITS}


def write(dataset: ConvertedDataset, output: Path) -> None:
    """Write and report the splits, and print train_net.py's arguments for them."""
    # Splits of an earlier conversion would be taken for parts of this one.
    paths = output_paths(output)
    for path in paths.values():
        path.unlink(missing_ok=True)

    train_arguments: dict[str, list[str]] = {}
    for name, conversion in dataset.conversions.items():
        path = paths[name]
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(conversion.content))
        print(f"{path}: {conversion.report()}")

        # Without a validation part the test part takes its place.
        option = name.replace("test", "val")
        images = str(dataset.image_roots[name])
        train_arguments[name] = [f"--{option}-json", str(path), f"--{option}-images", images]

    for remark in dataset.remarks:
        print(remark)
    for folder in sorted(set(dataset.image_roots.values())):
        others = find_others(folder)
        if others:
            print(describe_others(folder, others, "images"))
    if "val" in train_arguments:
        train_arguments.pop("test", None)
        if not dataset.conversions["val"].content["annotations"]:
            print("warning: the part for validation has no boxes, so that nothing can be measured")
    elif "test" not in train_arguments:
        train_arguments["val"] = ["--val-fraction", str(VOC_FRACTION)]

    words = itertools.chain(*train_arguments.values())
    print(f"train_net.py takes them with {shlex.join(words)}")


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
