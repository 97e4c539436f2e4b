"""Evaluate weights on the validation data of a config, or on own data.

%(prog)s --config-file F --weights W
%(prog)s --config-file F --weights W --data-dir data/mine --show-dir shown

The same as train with --eval-only.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from salience_detr.cli.flags import train


def parse_args(argv: Sequence[str] | None = None, *, prog: str | None = None) -> argparse.Namespace:
    words = sys.argv[1:] if argv is None else argv
    return train.parse_args(["--eval-only", *words], prog=prog, description=__doc__, trains=False)
