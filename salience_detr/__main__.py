"""The console command: ``python -m salience_detr`` is the same as ``salience-detr``."""

import sys

from salience_detr.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
