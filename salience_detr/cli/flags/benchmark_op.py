"""Time the compiled deformable-attention operator against the PyTorch reference, with peak memory.

%(prog)s --device cpu --repeats 15
%(prog)s --device cuda --dtype bfloat16 --json operator.json

The implementations take turns, so that other work on the machine disturbs all alike: the reference
(grid_sample), the fused operator, the unfused one (locations and softmax by PyTorch, sampling by
the operator), and on CUDA the original extension, where the module MultiScaleDeformableAttention of
Deformable DETR is installed. Speed-ups are over the reference.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from salience_detr.cli.arguments import Parser, number

NUM_SHAPES = 6  # of cli/benchmark_op.py, which takes seconds to import


def parse_args(argv: Sequence[str] | None = None, *, prog: str | None = None) -> argparse.Namespace:
    dtypes = ("float64", "float32", "float16", "bfloat16")
    numbers = range(NUM_SHAPES)
    parser = Parser(prog=prog, description=__doc__)

    add = parser.add_argument
    add("--device", default="auto", choices=("auto", "cpu", "cuda"))
    add("--dtype", default="float32", choices=dtypes)
    add("--repeats", type=number(int, 1), default=7, help="timed turns (default: 7)")
    add("--shapes", nargs="*", type=int, choices=numbers, default=numbers, help="(default: all)")
    add("--json", type=Path, metavar="FILE", help="write the rows to FILE")
    return parser.parse_args(argv)
