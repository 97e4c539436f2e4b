#!/usr/bin/env python
"""Measure images per second and peak memory of training, by variant, and of the data loader alone.

The program is in salience_detr/cli/benchmark_training.py.
"""

import sys

from salience_detr.cli.main import run_script

if __name__ == "__main__":
    sys.exit(run_script("benchmark_training"))
