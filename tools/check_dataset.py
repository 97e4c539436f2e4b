#!/usr/bin/env python
"""List all problems of a data set in COCO's format: every annotation and image is read.

The program is in salience_detr/cli/check_dataset.py.
"""

import sys

from salience_detr.cli.main import run_script

if __name__ == "__main__":
    sys.exit(run_script("check_dataset"))
