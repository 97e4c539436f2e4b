"""Train or evaluate the model of a LazyConfig file.

%(prog)s --config-file configs/surface_defects_tiny.py
%(prog)s --config-file configs/salience_detr_r50_4scale_12ep.py --num-gpus 8
%(prog)s --config-file F --eval-only --weights W --show-dir shown
%(prog)s --config-file F --data-dir D --weights W train.output_dir=output/mine
torchrun --nproc-per-node 8 -m salience_detr train --config-file F
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from salience_detr.cli.arguments import OPTIMIZATIONS, Parser, number
from salience_detr.cli.tuning_arguments import add_tuning_arguments
from salience_detr.utils.drawing_options import add_drawing_arguments, has_drawing_arguments

# Flags that an evaluation has no use for.
TRAINING_FLAGS = (
    "resume", "lr", "epochs", "augmentation", "batch_size", "patience", "schedule", "freeze",
    "layer_decay", "repeat_threshold",
)  # fmt: skip


def parse_args(
    argv: Sequence[str] | None = None,
    *,
    prog: str | None = None,
    description: str | None = __doc__,
    trains: bool = True,
) -> argparse.Namespace:
    """Parse the flags of detectron2's ``default_argument_parser``, and a few more.

    Those of :data:`TRAINING_FLAGS` have no effect with --eval-only, which is added to the command
    line of a training; a line says so. Without ``trains`` they are refused.

    That parser itself takes everything after the first ``key=value`` for an override, flags too.
    """
    parser = Parser(prog=prog, description=description)
    config_help = "LazyConfig file or name (default: what the weights name)"
    parser.add_config(required=False, help=config_help)
    add = parser.add_argument
    add("--resume", action="store_true", help="continue the run in train.output_dir")
    add("--eval-only", action="store_true", help="evaluate the weights")
    add("--weights", metavar="FILE", help="to start from or evaluate: train.init_checkpoint")
    names_help = "with --eval-only: do not compare the classes of the weights and the data set"
    add("--ignore-class-names", action="store_true", help=names_help)
    add("--show-dir", type=Path, metavar="DIR", help="with --eval-only: draw the detections here")
    optimize_help = f"with --eval-only: {', '.join(OPTIMIZATIONS)} (default: fused)"
    parser.add_optimize(default=None, help=optimize_help)
    gpus_help = "processes per machine, on the CPU without GPUs"
    add("--num-gpus", type=number(int, 1), default=1, help=gpus_help)
    add("--num-machines", type=number(int, 1), default=1, help="number of machines")
    add("--machine-rank", type=int, default=0, help="number of this machine, from 0")
    add("--dist-url", default="auto", help="tcp://HOST:PORT of machine 0, for several machines")
    parser.add_run()
    parser.add_data()
    parser.add_augmentation()
    add_tuning_arguments(parser)
    add_drawing_arguments(parser)

    if not trains:
        parser.hide(TRAINING_FLAGS)
    args = parser.parse(argv)

    given = [name for name in TRAINING_FLAGS if args.eval_only and getattr(args, name)]
    flags = ", ".join(f"--{name.replace('_', '-')}" for name in given)
    if given and not trains:
        parser.error(f"{flags} is of training, and val only evaluates: leave it out")
    if given:
        print(f"note: --eval-only trains nothing and does without {flags}", file=sys.stderr)
        for name in given:
            setattr(args, name, parser.get_default(name))

    if args.show_dir is not None and not args.eval_only:
        parser.error(f"--show-dir {args.show_dir} draws what --eval-only finds: add --eval-only")
    if args.show_dir is None and has_drawing_arguments(args):
        parser.error("--line-width, --colors and the other options of drawings go with --show-dir")
    if args.optimize is not None and not args.eval_only:
        parser.error("--optimize goes with --eval-only; train.compile=True compiles for training")
    if args.ignore_class_names and not args.eval_only:
        parser.error("--ignore-class-names goes with --eval-only; training compares by name")
    return args
