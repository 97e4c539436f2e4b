"""Measure a config's model, and detectors of other packages beside it, on this machine.

%(prog)s --config-file F --device cpu --modes eager amp --batch-size 1 2 --compare all
%(prog)s --config-file F --operator compiled reference --modes eager training
%(prog)s --config-file F --weights W --size 256 256 --modes all

Prints parameters, GMACs, latency, images per second and peak memory by batch size, and milliseconds
by stage. Every measurement runs in a process of its own; one that fails is a row with the reason.
Ctrl-C prints what was measured so far. With --compare, a table of each detector in its fastest
mode follows; other detectors have all modes but fused and training.

--modes all prints another table, of the forms to choose from on a CPU: eager, fused, compiled, ONNX
Runtime, OpenVINO and .pt2. They are measured in turns. AP comes with --weights and the images of
the config's test set.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from salience_detr.cli.arguments import Parser, number

# Those of benchmark/, which takes seconds to import.
MODES = (
    "eager", "channels-last", "fused", "compiled",
    "amp", "channels-last-amp", "fused-amp", "compiled-amp", "training", "training-amp",
)  # fmt: skip
OPERATORS = ("compiled", "reference")
OTHERS = ("retinanet", "fcos", "faster-rcnn", "deformable-detr", "rt-detr")


def parse_args(argv: Sequence[str] | None = None, *, prog: str | None = None) -> argparse.Namespace:
    parser = Parser(prog=prog, description=__doc__)
    parser.add_config(required=False, default="configs/salience_detr_r50_4scale_12ep.py")
    parser.add_size()

    add = parser.add_argument
    add("--weights", metavar="FILE", help="checkpoint of the config's model (default: random)")
    add("--device", default="auto", choices=("auto", "cpu", "cuda"))
    batch_size = number(int, 1)
    sizes: dict[str, Any] = {
        "nargs": "+",
        "type": batch_size,
        "dest": "batch_sizes",
        "metavar": "N",
    }
    add("--batch-size", default=[1, 2, 4], help="one or more (default: 1 2 4)", **sizes)
    add("--batch-sizes", help=argparse.SUPPRESS, **sizes)  # its earlier name
    modes_help = f"some of {', '.join(MODES)} (default: eager amp); or all"
    modes: dict[str, Any] = {"choices": (*MODES, "all"), "default": ["eager", "amp"]}
    add("--modes", nargs="+", metavar="MODE", help=modes_help, **modes)
    exports_help = "exported files of --modes all; missing ones are written there"
    add("--exports", type=Path, metavar="DIR", help=exports_help)
    add("--operator", nargs="+", choices=OPERATORS, default=["compiled"])
    add("--dtype", default="bfloat16", choices=("bfloat16", "float16"), help="of the amp modes")

    repeats_help = "timed calls (default: GPU 20, CPU 5)"
    add("--repeats", type=number(int, 1), metavar="N", help=repeats_help)
    warmup_help = "calls before them (default: GPU 3, CPU 1)"
    add("--warmup", type=number(int, 0), metavar="N", help=warmup_help)

    others = ("all", *OTHERS)
    compare_help = f"some of {', '.join(others)} (default: none)"
    add("--compare", nargs="+", choices=others, default=[], metavar="NAME", help=compare_help)
    add("--json", type=Path, metavar="FILE", help="write all results to FILE")
    add("--markdown", type=Path, metavar="FILE", help="write the tables to FILE")
    args = parser.parse(argv)

    if "all" in args.modes and (len(args.modes) > 1 or args.compare):
        parser.error("--modes all is a table of its own: leave out other modes and --compare")
    if "all" in args.modes and args.device == "cuda":
        parser.error("--modes all measures on the CPU: leave out --device cuda")
    if args.exports is not None and "all" not in args.modes:
        parser.error("--exports goes with --modes all")
    return args
