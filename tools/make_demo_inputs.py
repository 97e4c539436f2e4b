#!/usr/bin/env python
"""Prepare the inputs of the demo: some images, and a video of a plate that slides past a camera.

The program is in salience_detr/cli/make_demo_inputs.py.
"""

import sys

from salience_detr.cli.main import run_script

if __name__ == "__main__":
    sys.exit(run_script("make_demo_inputs"))
