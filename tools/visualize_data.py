#!/usr/bin/env python
"""Draw a data set: the annotations of the file, or what the training loader yields.

The program is in salience_detr/cli/visualize_data.py.
"""

import sys

from salience_detr.cli.main import run_script

if __name__ == "__main__":
    sys.exit(run_script("visualize_data"))
