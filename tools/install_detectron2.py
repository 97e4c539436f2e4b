#!/usr/bin/env python
"""Install detectron2, which is not on the package index, from the first source that works.

The program is in salience_detr/cli/install_detectron2.py.
"""

import sys

from salience_detr.cli.install_detectron2 import main

if __name__ == "__main__":
    sys.exit(main())
