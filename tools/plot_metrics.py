#!/usr/bin/env python
"""Draw the metrics of training runs as PNG files.

The program is in salience_detr/cli/plot_metrics.py.
"""

import sys

from salience_detr.cli.main import run_script

if __name__ == "__main__":
    sys.exit(run_script("plot_metrics"))
