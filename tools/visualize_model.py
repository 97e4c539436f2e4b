#!/usr/bin/env python
"""Draw what happens inside a model on images.

The program is in salience_detr/cli/visualize_model.py.
"""

import sys

from salience_detr.cli.main import run_script

if __name__ == "__main__":
    sys.exit(run_script("visualize_model"))
