#!/usr/bin/env python
"""Time the compiled deformable-attention operator against the PyTorch reference, with peak memory.

The program is in salience_detr/cli/benchmark_op.py.
"""

import sys

from salience_detr.cli.main import run_script

if __name__ == "__main__":
    sys.exit(run_script("benchmark_op"))
