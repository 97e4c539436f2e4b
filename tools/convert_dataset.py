#!/usr/bin/env python
"""Convert annotations of Pascal VOC or YOLO to COCO's format, or split a file in that format.

The program is in salience_detr/cli/convert_dataset.py.
"""

import sys

from salience_detr.cli.main import run_script

if __name__ == "__main__":
    sys.exit(run_script("convert_dataset"))
