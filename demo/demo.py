#!/usr/bin/env python
"""Detect objects on images and videos, and draw the detections.

The program is in salience_detr/cli/predict.py.
"""

import sys

from salience_detr.cli.main import run_script

if __name__ == "__main__":
    sys.exit(run_script("predict"))
