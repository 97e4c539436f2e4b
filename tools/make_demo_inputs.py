#!/usr/bin/env python
"""Prepare the inputs of the demo: some images, and a video of a plate that slides past a camera.

The program is in salience_detr/cli/make_demo_inputs.py.
"""

import sys

from salience_detr.cli.make_demo_inputs import main

if __name__ == "__main__":
    sys.exit(main())
