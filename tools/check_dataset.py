#!/usr/bin/env python
"""List all problems of a data set in COCO's format: every annotation and image is read.

The program is in salience_detr/cli/check_dataset.py.
"""

import sys

from salience_detr.cli.check_dataset import main

if __name__ == "__main__":
    sys.exit(main())
