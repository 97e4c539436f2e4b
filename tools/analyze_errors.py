#!/usr/bin/env python
"""Report what a detector gets wrong: classes, sizes, crowding, error types, confusions, images.

The program is in salience_detr/cli/analyze_errors.py.
"""

import sys

from salience_detr.cli.main import run_script

if __name__ == "__main__":
    sys.exit(run_script("analyze_errors"))
