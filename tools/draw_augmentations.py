#!/usr/bin/env python
"""Draw a training image with each preset of --augmentation, side by side, into one file.

tools/draw_augmentations.py --config-file configs/surface_defects_tiny.py --output augmentations.jpg
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import cv2
import numpy as np
from omegaconf import DictConfig

from salience_detr.cli.arguments import Parser, number, run_program
from salience_detr.cli.visualize_data import read_augmented
from salience_detr.config import load_config
from salience_detr.data.datasets import class_names_of
from salience_detr.engine.augmentation_choice import choose_augmentation
from salience_detr.engine.own_data import use_own_data
from salience_detr.utils.drawing import class_colors, draw_boxes
from salience_detr.utils.drawing_options import DrawingOptions
from salience_detr.utils.files import write_image

NAMES = [
    "hflip", "multi_scale", "detr", "lsj", "no_up", "strong",
    "ssd", "rtdetr", "strong_album", "mosaic", "mixup", "copy_paste",
]  # fmt: skip
CAPTION = 26  # height in pixels


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(description=__doc__)
    parser.add_config()
    add = parser.add_argument
    add("--output", required=True, type=Path, metavar="FILE")
    add("--side", type=number(int, 32), default=240, metavar="N", help="of each drawing, in pixels")
    add("--columns", type=number(int, 1), default=6, metavar="N")
    parser.add_data()
    return parser.parse(argv)


def draw_preset(config: DictConfig, name: str, side: int) -> np.ndarray:
    """Return a square drawing of one image with a preset, under its name."""
    choose_augmentation(config, name)
    for mix in config.dataloader.train.mapper.get("mixes", []):
        mix.prob = 1.0

    loader = config.dataloader.train
    loader.num_workers = 0
    sample = next(read_augmented(loader))
    names = class_names_of(loader.dataset.names)
    colors = class_colors(len(names))
    labels = [""] * len(sample.classes)
    box_colors = [colors[i] for i in sample.classes]
    options = DrawingOptions(has_labels=False)
    drawing = draw_boxes(sample.image, list(sample.boxes), labels, box_colors, options)

    # On white, with its proportions.
    factor = side / max(drawing.shape[:2])
    size = [max(1, round(length * factor)) for length in drawing.shape[1::-1]]
    small = cv2.resize(drawing, size, interpolation=cv2.INTER_AREA)
    tile = np.full((side + CAPTION, side + 6, 3), 255, np.uint8)
    tile[CAPTION : CAPTION + size[1], : size[0]] = small
    place = (2, CAPTION - 9)
    cv2.putText(tile, name, place, cv2.FONT_HERSHEY_SIMPLEX, 0.5, (0, 0, 0), 1, cv2.LINE_AA)
    return tile


def draw_all(args: argparse.Namespace) -> None:
    """Draw the presets into one file.

    Raises:
        ConfigError, DatasetError, ImportError, OSError: the config, the data, a package or the
            output cannot be used.
    """
    tiles = []
    for name in NAMES:
        config = load_config(args.config_file, args.opts, trust=args.trust_config)
        use_own_data(config, args, needed=("train",))
        tiles.append(draw_preset(config, name, args.side))

    # The last row is filled up with white.
    while len(tiles) % args.columns:
        tiles.append(np.full_like(tiles[0], 255))
    rows = []
    for start in range(0, len(tiles), args.columns):
        rows.append(np.hstack(tiles[start : start + args.columns]))
    write_image(args.output, np.vstack(rows))
    print(args.output)


if __name__ == "__main__":
    sys.exit(run_program(draw_all, parse_args()))
