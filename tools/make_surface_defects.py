#!/usr/bin/env python
"""Generate the "surface defects" data set: train and val images with COCO annotations.

The program is in salience_detr/cli/make_surface_defects.py.
"""

import sys

from salience_detr.cli.main import run_script

if __name__ == "__main__":
    sys.exit(run_script("make_surface_defects"))
