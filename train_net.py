#!/usr/bin/env python
"""Train or evaluate the model of a LazyConfig file.

The program is in salience_detr/cli/train.py.
"""

import sys

from salience_detr.cli.main import run_script

if __name__ == "__main__":
    sys.exit(run_script("train", function="start"))
