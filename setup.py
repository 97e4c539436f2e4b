"""Packs the operator: its sources, and the library built ahead of time where PyTorch and a compiler are at hand.

Everything else is in pyproject.toml. The build runs in a Python of its own, outside pip's isolated one, because it must
be for the PyTorch that is installed, and that is no build requirement: nobody wants it downloaded a second time.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent


class BuildWithOperator(build_py):
    """Adds the operator to the package."""

    def run(self) -> None:
        super().run()
        package = (ROOT if self.editable_mode else Path(self.build_lib)) / "salience_detr"
        if not self.editable_mode:
            shutil.copytree(
                ROOT / "ops", package / "_ops", dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__")
            )
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        command = [sys.executable, str(ROOT / "ops" / "build.py"), "--output", str(package / "_operator")]
        if subprocess.run(command, env=environment).returncode:
            print("The operator is not built ahead of time; the first use will try again.", file=sys.stderr)
        for lock in (package / "_operator").glob("*.lock"):
            lock.unlink()


class PlatformDistribution(Distribution):
    """A wheel with a compiled library is for one platform."""

    def has_ext_modules(self) -> bool:
        return True


setup(cmdclass={"build_py": BuildWithOperator}, distclass=PlatformDistribution)
