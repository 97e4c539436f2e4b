#!/usr/bin/env python
"""Make the generated "surface defects" data set: train and val images with COCO annotations."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

from salience_detr.data.datasets import DatasetError
from salience_detr.data.surface.dataset import SPLITS, generate_surface_defects


def image_size(text: str) -> tuple[int, int]:
    """(height, width) from "320" or "240x320" (height x width)."""
    try:
        height, _, width = text.partition("x")
        return int(height), int(width or height)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is neither a side nor HEIGHTxWIDTH in pixels"
        ) from None


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    root = Path(os.environ.get("DETECTRON2_DATASETS", "datasets"))
    parser.add_argument(
        "--output",
        type=Path,
        default=root / "surface_defects",
        help="folder (default: %(default)s)",
    )
    parser.add_argument("--splits", nargs="+", choices=SPLITS, default=SPLITS)
    parser.add_argument(
        "--num-train", type=int, default=4000, help="images to train on (default: %(default)s)"
    )
    parser.add_argument(
        "--num-val", type=int, default=300, help="images to validate on (default: %(default)s)"
    )
    parser.add_argument(
        "--size", type=image_size, default=(320, 320), help="side or HEIGHTxWIDTH (default: 320)"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count() or 1, help="processes (default: %(default)s)"
    )
    parser.add_argument(
        "--force", action="store_true", help="replace a data set made with other arguments"
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    counts = {"train": args.num_train, "val": args.num_val}
    try:
        for split in args.splits:
            path = generate_surface_defects(
                args.output,
                split=split,
                num_images=counts[split],
                image_size=args.size,
                seed=args.seed,
                workers=args.workers,
                force=args.force,
            )
            content = json.loads(path.read_text())
            print(
                f"{split}: {len(content['images'])} images, {len(content['annotations'])} defects, {path}"
            )
    except (DatasetError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: nothing was written", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
