"""The answer to imports of this package while detectron2 is missing: how to install it."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from types import ModuleType

NO_DETECTRON2 = (
    "salience_detr needs detectron2, which is not on the package index; install it with: "
    "python -m salience_detr install-detectron2 (in the project's folder 'make setup' does it too)"
)

# Modules that do without: help, and the installation itself.
INDEPENDENT = (
    "salience_detr.__main__",
    "salience_detr.cli",
    "salience_detr.cli.arguments",
    "salience_detr.cli.install_detectron2",
    "salience_detr.cli.main",
    "salience_detr.cli.tuning_arguments",
)
INDEPENDENT_PACKAGES = ("salience_detr.cli.flags", "salience_detr.utils")


class MissingDetectron2(MetaPathFinder):
    """Finder that finds nothing, and tells of detectron2 where a module of this package needs it.

    Each of them would fail with the name of some module of detectron2.
    """

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> None:
        """Let the other finders go on.

        Raises:
            ImportError: the module needs detectron2, which is not installed.
        """
        is_independent = name in INDEPENDENT or name.startswith(INDEPENDENT_PACKAGES)
        if not name.startswith("salience_detr.") or is_independent:
            return
        if importlib.util.find_spec("detectron2") is None:
            raise ImportError(NO_DETECTRON2)
