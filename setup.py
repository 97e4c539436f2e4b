"""What a wheel holds besides the package: configs, shipped weights, and the operator.

Of the operator these are its sources, and the library where PyTorch and a compiler are at hand.
Everything else is in pyproject.toml. The operator is built in a Python of its own, outside of pip's
isolated one, because it must match the installed PyTorch. PyTorch is no build requirement, which
would download it a second time.
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


class BuildWhole(build_py):
    """Adds the operator, the configs and the shipped weights to the package."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            self.build_operator(ROOT / "salience_detr" / "_operator")
            return

        # A wheel carries the sources as well, to build for another PyTorch on first use.
        package = Path(self.build_lib) / "salience_detr"
        zoo = package / "model_zoo"
        for folder in (package / "_ops", package / "_operator", zoo / "configs", zoo / "weights"):
            shutil.rmtree(folder, ignore_errors=True)  # of an earlier build

        no_cache = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / "ops", package / "_ops", ignore=no_cache)
        shutil.copytree(ROOT / "configs", zoo / "configs", ignore=no_cache)
        shutil.copytree(ROOT / "demo", zoo / "weights", ignore=shutil.ignore_patterns("*.py", "_*"))

        self.build_operator(package / "_operator")
        for lock in (package / "_operator").glob("*.lock"):
            lock.unlink()

    def build_operator(self, folder: Path) -> None:
        """Build the library for the installed PyTorch into a folder."""
        # pip's isolated environment hides the installed packages by this variable.
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        command = [sys.executable, str(ROOT / "ops" / "build.py"), "--output", str(folder)]
        if subprocess.run(command, env=environment, stdout=subprocess.DEVNULL).returncode:
            message = "The operator is not built ahead of time; the first use will try again."
            print(message, file=sys.stderr)


class PlatformDistribution(Distribution):
    """A wheel with a compiled library is for one platform."""

    def has_ext_modules(self) -> bool:
        return True


setup(cmdclass={"build_py": BuildWhole}, distclass=PlatformDistribution)
