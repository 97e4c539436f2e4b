#!/usr/bin/env python
"""Read every annotation and image of a data set in COCO's format, and list everything that is wrong with it.

tools/check_dataset.py train.json images/train --val val.json images/val
tools/check_dataset.py --data-dir data/mine
tools/check_dataset.py train.json images/train --fix train_fixed.json

The exit code is 0 if nothing is wrong (there may be warnings), 1 if something is, 2 if the files cannot be read.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

from tabulate import tabulate

from salience_detr.data.coco_format import DatasetError
from salience_detr.data.preparation.layouts import Split, find_splits
from salience_detr.data.preparation.repair import fixed
from salience_detr.data.preparation.validation import (
    ERRORS,
    WARNINGS,
    Inspection,
    class_table,
    find_leaks,
    inspect,
    size_histogram,
    size_table,
)
from salience_detr.utils.files import written_whole


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("json", nargs="?", type=Path, help="annotations")
    parser.add_argument("images", nargs="?", type=Path, help="the folder of their images")
    parser.add_argument(
        "--val", nargs=2, type=Path, metavar=("JSON", "IMAGES"), help="a second set, for validation"
    )
    parser.add_argument(
        "--data-dir", type=Path, metavar="DIR", help="instead: a folder with both in a usual layout"
    )
    parser.add_argument(
        "--fix",
        type=Path,
        metavar="OUT.json",
        help="write the (first) set, mended",
    )
    parser.add_argument(
        "--show", type=int, default=5, metavar="N", help="examples of each kind of finding"
    )
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count() or 1, help="processes that read images"
    )
    args = parser.parse_args(argv)
    if (args.data_dir is None) == (args.json is None) or (args.json is None) != (
        args.images is None
    ):
        parser.error("give JSON and IMAGES, or --data-dir")
    if args.data_dir and args.val:
        parser.error("--val goes with JSON and IMAGES; --data-dir finds both sets")
    if args.workers < 0:
        parser.error(f"--workers is {args.workers}; it must be at least 0")
    return args


def chosen_splits(args: argparse.Namespace) -> dict[str, Split]:
    if args.data_dir:
        return find_splits(args.data_dir)
    splits = {"train": Split(args.json, args.images)}
    if args.val:
        splits["val"] = Split(*args.val)
    for split in splits.values():
        if not split.image_root.is_dir():
            raise DatasetError(f"there is no folder of images {split.image_root}")
    return splits


def print_report(result: Inspection, show: int) -> None:
    content = result.content
    print(
        f"\n{result.json_file}: {len(content['images'])} images, {len(content['annotations'])} boxes\n"
    )
    print(tabulate(class_table(result), headers="keys", tablefmt="github"))
    print("\n" + tabulate(size_table(result), headers="keys", tablefmt="github", floatfmt=".1f"))
    print("\n" + tabulate(size_histogram(result), headers="keys", tablefmt="github") + "\n")
    for level, kinds in (("ERROR", ERRORS), ("warning", WARNINGS)):
        for kind in kinds:
            found = result.findings.get(kind, [])
            if found:
                print(f"{level}: {kind}: {len(found)}")
                print("".join(f"    {line}\n" for line in found[:show]), end="")
                print(f"    and {len(found) - show} more\n" if len(found) > show else "", end="")


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    try:
        results = {
            name: inspect(split.json_file, split.image_root, workers=args.workers)
            for name, split in chosen_splits(args).items()
        }
        if len(results) == 2:
            find_leaks(results["train"], results["val"])
        for result in results.values():
            print_report(result, args.show)
        if args.fix:
            first, *others = results.values()
            content, done = fixed(
                first, without={image.digest for other in others for image in other.images}
            )
            with written_whole(args.fix) as temporary:
                temporary.write_text(json.dumps(content))
            print(
                f"\n{args.fix}: {', '.join(f'{count} {what}' for what, count in done.items()) or 'nothing to fix'}"
            )
    except (DatasetError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    errors = sum(result.num_errors for result in results.values())
    print(f"\n{errors} errors" if errors else "\nno errors")
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main())
