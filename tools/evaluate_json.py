#!/usr/bin/env python
"""Compute the average precision of a detections file in COCO's results format.

The program is in salience_detr/cli/evaluate_json.py.
"""

import sys

from salience_detr.cli.main import run_script

if __name__ == "__main__":
    sys.exit(run_script("evaluate_json"))
