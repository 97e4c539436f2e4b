"""Count parameters, multiply-accumulates (GMACs) and activations of models by stage, with fvcore.

%(prog)s --config-file configs/salience_detr_r50_4scale_12ep.py
%(prog)s --config-file F --config-file G --size 640 640 model.num_classes=5
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from salience_detr.cli.arguments import Parser


def parse_args(argv: Sequence[str] | None = None, *, prog: str | None = None) -> argparse.Namespace:
    parser = Parser(prog=prog, description=__doc__)
    parser.add_config(action="append", help="may be repeated")
    parser.add_size()
    return parser.parse(argv)
