"""Generate the "surface defects" data set: train and val images with COCO annotations."""

from __future__ import annotations

import argparse
import json

from salience_detr.cli.arguments import run_program
from salience_detr.cli.flags.make_surface_defects import parse_args
from salience_detr.data.surface.dataset import generate_surface_defects


def run(args: argparse.Namespace) -> None:
    """Generate the splits, and print what they hold.

    Raises:
        DatasetError: there is a data set made with other arguments.
        OSError: the folder cannot be written to.
    """
    counts = {"train": args.num_train, "val": args.num_val}
    for split in args.splits:
        path = generate_surface_defects(
            args.output,
            split=split,
            num_images=counts[split],
            image_size=args.image_size,
            seed=args.seed,
            workers=args.workers,
            force=args.force,
        )

        # Counted from the file: a split that was complete already is not made again.
        content = json.loads(path.read_text())
        num_defects = len(content["annotations"])
        print(f"{split}: {len(content['images'])} images, {num_defects} defects, {path}")


def main(argv: list[str] | None = None) -> int:
    return run_program(run, parse_args(argv))
