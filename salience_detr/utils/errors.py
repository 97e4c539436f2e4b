"""Errors as users see them: one line."""

from __future__ import annotations

import difflib
import io
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path


def one_line(error: Exception) -> str:
    """Return the message of an error in one line.

    The message of an error from a data worker is a whole traceback; its last line is the error.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    if "Traceback" not in str(error):
        return " ".join(lines)

    # The last line begins with the error's type, such as "a.b.ImageReadError: ".
    error_type, colon, message = lines[-1].partition(": ")
    has_type = colon and error_type.rpartition(".")[2].isidentifier()
    return message if has_type else lines[-1]


def tolerate_names(streams: Iterable[object]) -> None:
    """Write characters that a stream's encoding does not have as escapes, such as ``\\ud800``.

    Class and file names may hold any; without this, printing one would end the program.
    """
    for stream in streams:
        if isinstance(stream, io.TextIOWrapper) and not stream.closed:
            stream.reconfigure(errors="backslashreplace")


def printable(text: str) -> str:
    """Replace characters that no encoding has, lone surrogates, by question marks.

    A JSON file may have them in a name, and OpenCV's text drawing crashes on them.
    """
    return text.encode("utf-8", "replace").decode("utf-8")


def print_error(error: Exception) -> None:
    """Print an error on stderr, in one line."""
    print(f"error: {one_line(error)}", file=sys.stderr)


def shorten(names: Sequence[str], limit: int = 8) -> str:
    """Join the first names, and append the number of the others."""
    text = ", ".join(names[:limit])
    num_others = len(names) - limit

    return f"{text}, and {num_others} more" if num_others > 0 else text


# Letters from which a word tells something as a part of a name.
SHORTEST_PART = 3


def suggest(name: str, names: Sequence[str]) -> str:
    """Return a question with the names nearest to an unknown one, or the list of all."""
    word = Path(name).stem.lower()
    if word in names:
        return f"did you mean {word}?"

    near = difflib.get_close_matches(word, names, n=3, cutoff=0.6)
    if len(word) >= SHORTEST_PART:
        near += [known for known in names if word in known and known not in near]

    if near:
        return f"did you mean {' or '.join(near[:3])}?"
    return f"there are {', '.join(names)}"
