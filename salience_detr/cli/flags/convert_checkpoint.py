"""Convert a checkpoint into a file with the weights of a Salience DETR alone.

Checkpoints of the published implementation get this project's names. Of a checkpoint of
train_net.py the weights are kept: their exponential moving average (EMA) if there is one. The file
holds the names and category ids of the classes, if the checkpoint tells them or is COCO's, and the
best score thresholds if there are any. A .safetensors file also holds its config, which programs
use where --config-file is left out: the one that the checkpoint names, or config.yaml beside it.

With --average-with, the file holds the mean of the weights of several checkpoints, without score
thresholds; classes and config are those of IN.

With --half or --raw, the checkpoint may be of any detector; its tensors keep their names.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from salience_detr.cli.arguments import Parser


def parse_args(argv: Sequence[str] | None = None, *, prog: str | None = None) -> argparse.Namespace:
    parser = Parser(prog=prog, description=__doc__)
    add = parser.add_argument
    add("input", metavar="IN", help="a published or own checkpoint (.pth), its URL or name")
    add("output", metavar="OUT", type=Path, help="file to write, .safetensors or .pth")
    config_help = "config of the model, if the checkpoint does not tell it: its name or file"
    add("--config-file", metavar="FILE", help=config_help)
    add("--all-classes", action="store_true", help="keep all class rows, not COCO's 80 used ones")
    add("--half", action="store_true", help="store float16: half the size, about three digits")
    average_help = "write the mean of the weights of IN and of these checkpoints of the same model"
    add("--average-with", nargs="+", metavar="FILE", default=(), help=average_help)
    add("--raw", action="store_true", help="take the trained weights, not their EMA")
    args = parser.parse_args(argv)
    if args.output.suffix.lower() not in (".safetensors", ".pth"):
        parser.error(f"OUT is {args.output}; its name must end in .safetensors or .pth")
    return args
