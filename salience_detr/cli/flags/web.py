"""Web page that shows the detections and the salience of an image that is dropped on it.

    %(prog)s --config-file F --weights W
    %(prog)s --weights model.onnx --port 8000

Only browsers on this machine can open the page, unless --host is given. It loads nothing from other
servers.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from salience_detr.cli.arguments import Parser
from salience_detr.utils.drawing_options import add_drawing_arguments


def parse_args(argv: Sequence[str] | None = None, *, prog: str | None = None) -> argparse.Namespace:
    parser = Parser(prog=prog, description=__doc__)
    parser.add_detector()
    parser.add_optimize()
    add = parser.add_argument
    add("--host", default="127.0.0.1", help="address to listen at; 0.0.0.0 for all addresses")
    add("--port", type=int, default=7860, help="port, 0 for a free one (default: 7860)")
    add_drawing_arguments(parser)
    return parser.parse(argv)
