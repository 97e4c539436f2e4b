"""Folders that a checkout has beside the package, and a wheel inside of it."""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]


def shipped_folder(in_checkout: str, in_wheel: str, *, content: str) -> Path:
    """Return a folder of the checkout if the package is run from one, else that of the wheel.

    Args:
        in_checkout: the folder, relative to the checkout.
        in_wheel: the folder, relative to the package.
        content: a file in it, by which the checkout is told from other folders of that name.
    """
    folder = PACKAGE.parent / in_checkout
    if (folder / content).is_file():
        return folder
    return PACKAGE / in_wheel
