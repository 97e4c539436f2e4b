"""List all problems of a data set in COCO's format: every annotation and image is read."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from tabulate import tabulate

from salience_detr.cli.arguments import run_program
from salience_detr.cli.flags.check_dataset import parse_args
from salience_detr.data.annotation_checks import Finding
from salience_detr.data.coco_format import DatasetError
from salience_detr.data.preparation.layouts import Split
from salience_detr.data.preparation.repair import repair
from salience_detr.data.preparation.splitting import check_fraction
from salience_detr.data.preparation.statistics import class_table, size_histogram, size_table
from salience_detr.data.preparation.validation import (
    ERRORS,
    WARNINGS,
    ValidationResult,
    compare_categories,
    find_leaks,
    validate,
)
from salience_detr.engine.own_data import chosen_splits
from salience_detr.utils.files import write_text


def select_splits(args: argparse.Namespace) -> dict[str, Split]:
    """Return the splits that the arguments name."""
    if args.json is None:
        if args.val_fraction is not None:
            check_fraction(args.val_fraction)
            print("note: --val-fraction is left to the training: the images are checked together")
        return chosen_splits(args)

    splits = {"train": Split(args.json, args.images)}
    if args.val:
        splits["val"] = Split(*args.val)

    for split in splits.values():
        if not split.image_root.is_dir():
            raise DatasetError(f"there is no folder of images {split.image_root}")
    return splits


def print_result(result: ValidationResult, num_shown: int) -> None:
    """Print the tables of a data set, and ``num_shown`` problems of each kind."""
    num_images = len(result.content["images"])
    num_boxes = len(result.content["annotations"])
    print(f"\n{result.json_file}: {num_images} images, {num_boxes} boxes\n")

    for table in (class_table(result), size_table(result), size_histogram(result)):
        print(tabulate(table, headers="keys", tablefmt="github", floatfmt=".1f") + "\n")

    for level, kinds in (("ERROR", ERRORS), ("warning", WARNINGS)):
        for kind in kinds:
            problems = result.problems.get(kind)
            if not problems:
                continue
            print(f"{level}: {kind}: {len(problems)}")
            for problem in problems[:num_shown]:
                print(f"    {problem}")
            if len(problems) > num_shown:
                print(f"    and {len(problems) - num_shown} more")

    for kind, lines in result.notes.items():
        for line in lines:
            print(f"note: {kind}: {line}")


def write_repaired(results: list[ValidationResult], path: Path) -> None:
    """Write the first data set, repaired and without images of the others; print the changes.

    Raises:
        DatasetError: no image would be left, or of some boxes none; or the boxes are corners or
            fractions.
    """
    # An image in both sets stays in the second one.
    first, *others = results
    digests: set[str] = set()
    for other in others:
        digests.update(file.digest for file in other.files)
    content, changes = repair(first, without=digests)

    if Finding.CORNERS.value in first.problems:
        raise DatasetError(
            f"{path} is not written: boxes of {first.json_file} look like corners, and clipping "
            "them would hide it; write width and height into bbox first"
        )
    if Finding.FRACTIONS.value in first.problems:
        raise DatasetError(
            f"{path} is not written: boxes of {first.json_file} look like fractions of their "
            "image; write pixels into bbox first"
        )

    lost = [kind for kind in ("images", "annotations") if first.content[kind] and not content[kind]]
    if lost or not content["images"]:
        raise DatasetError(
            f"no {'image' if 'images' in lost or not content['images'] else 'box'} of "
            f"{first.json_file} would be left: {path} is not written; the problems above say why"
        )

    write_text(path, json.dumps(content))
    summary = ", ".join(f"{count} {change}" for change, count in changes.items())
    print(f"\n{path}: {summary or 'nothing to fix'}")


def require_boxes(results: dict[str, ValidationResult]) -> None:
    """Make it an error if there is no box in the data to train on."""
    if "train" in results:
        problems = results["train"].problems
        problems["nothing to train on"] += problems.pop(Finding.NO_BOXES.value, [])


def run(args: argparse.Namespace) -> int:
    """Print the problems, repair if asked to, and return the exit code."""
    results = {}
    for name, split in select_splits(args).items():
        results[name] = validate(split.json_file, split.image_root, workers=args.workers)
    if len(results) == 2:
        find_leaks(results["train"], results["val"])
        compare_categories(results["train"], results["val"])
    # A single file may be one to evaluate on.
    if args.json is None or args.val:
        require_boxes(results)

    for result in results.values():
        print_result(result, args.show)
    if args.fix:
        write_repaired(list(results.values()), args.fix)

    num_errors = sum(result.num_errors for result in results.values())
    print(f"\n{num_errors or 'no'} errors")
    return 1 if num_errors else 0


def main(argv: list[str] | None = None) -> int:
    return run_program(run, parse_args(argv))
