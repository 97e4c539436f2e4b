"""Measure images per second and peak memory of training, by variant, and of the data loader alone.

%(prog)s --config-file F --data-dir D [--steps 5] [--only plain] key=value ...

Each variant (mixed precision, activation checkpointing, gradient accumulation, ...) trains on the
same images in a process of its own.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from salience_detr.cli.arguments import Parser, number

AMP = "train.amp.enabled=True"
ENCODER = "model.encoder.use_checkpoint=True"
BACKBONE = "model.backbone.use_checkpoint=True"
VARIANTS = {
    "plain": [],
    "amp": [AMP],
    "encoder checkpointed": [ENCODER],
    "encoder and backbone checkpointed": [ENCODER, BACKBONE],
    "amp, both checkpointed": [AMP, ENCODER, BACKBONE],
    "TF32 products": ["train.matmul_precision=high"],
    "accumulate 2": ["train.accumulate=2"],
    "accumulate 4": ["train.accumulate=4"],
    "channels last": ["train.channels_last=True"],
    "amp, channels last": [AMP, "train.channels_last=True"],
    "channels first": ["train.channels_last=False"],
    "amp, channels first": [AMP, "train.channels_last=False"],
    "compile": ["train.compile=True"],
}


def parse_args(argv: Sequence[str] | None = None, *, prog: str | None = None) -> argparse.Namespace:
    parser = Parser(prog=prog, description=__doc__)
    parser.add_config()
    add = parser.add_argument
    steps_help = "steps to time, after one that is not timed"
    add("--steps", type=number(int, 1), default=5, help=steps_help)
    add("--only", action="append", choices=VARIANTS, help="repeatable (default: all but compile)")
    add("--device", help="cpu, cuda, ...: train.device")
    add("--batch-size", type=number(int, 1), metavar="N", help="images of a step")
    parser.add_image_size()
    parser.add_data()

    args = parser.parse(argv)
    args.only = args.only or [name for name in VARIANTS if name != "compile"]
    return args
