#!/usr/bin/env python
"""Draw what happens inside a model on images.

The program is in salience_detr/cli/visualize_model.py.
"""

import sys

from salience_detr.cli.visualize_model import main

if __name__ == "__main__":
    sys.exit(main())
