#!/usr/bin/env python
"""Convert a checkpoint into a file with the weights of a Salience DETR alone.

The program is in salience_detr/cli/convert_checkpoint.py.
"""

import sys

from salience_detr.cli.main import run_script

if __name__ == "__main__":
    sys.exit(run_script("convert_checkpoint"))
