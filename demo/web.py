#!/usr/bin/env python
"""Web page that shows the detections and the salience of an image that is dropped on it.

The program is in salience_detr/cli/web.py.
"""

import sys

from salience_detr.cli.main import run_script

if __name__ == "__main__":
    sys.exit(run_script("web"))
