#!/usr/bin/env python
"""Count parameters, multiply-accumulates (GMACs) and activations of models by stage, with fvcore.

The program is in salience_detr/cli/analyze_model.py.
"""

import sys

from salience_detr.cli.main import run_script

if __name__ == "__main__":
    sys.exit(run_script("analyze_model"))
