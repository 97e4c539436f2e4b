#!/usr/bin/env python
"""Measure a config's model, and detectors of other packages beside it, on this machine.

The program is in salience_detr/cli/benchmark.py.
"""

import sys

from salience_detr.cli.main import run_script

if __name__ == "__main__":
    sys.exit(run_script("benchmark"))
