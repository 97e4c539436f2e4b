"""How errors are told to a user."""

from __future__ import annotations

import sys


def one_line(error: Exception) -> str:
    """The message of an error in one line; of one from a data worker, which carries a whole traceback, the last."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    if "Traceback" not in str(error):
        return " ".join(lines)
    kind, colon, words = lines[-1].partition(": ")
    return words if colon and kind.rpartition(".")[2].isidentifier() else lines[-1]


def print_error(error: Exception) -> None:
    """Print an error of the user as one line on stderr, as all programs do."""
    print(f"error: {one_line(error)}", file=sys.stderr)
