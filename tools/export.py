#!/usr/bin/env python
"""Export a trained model: ONNX, a program of torch.export, or a package compiled by AOTInductor.

The program is in salience_detr/cli/export.py.
"""

import sys

from salience_detr.cli.main import run_script

if __name__ == "__main__":
    sys.exit(run_script("export"))
