"""Files that are images: by their ending, or by their signature where they have no known one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from PIL import Image

import salience_detr.data.decoding  # noqa: F401, registers a reader of HEIC files

# Formats that PIL recognizes but does not decode, or only with other programs.
NOT_DECODED = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}
# Files of these endings are often something else; their signature decides.
AMBIGUOUS = {".bw", ".fit", ".iim", ".im", ".ras", ".rgb", ".rgba"}
# Files of these endings are no images, which need not be looked up.
OTHER_ENDINGS = {
    ".cache", ".csv", ".json", ".jsonl", ".log", ".md", ".names", ".npy", ".npz", ".onnx", ".pdf",
    ".pt", ".pth", ".py", ".txt", ".xml", ".yaml", ".yml", ".zip",
}  # fmt: skip
SIGNATURE_BYTES = 16


@cache
def image_endings() -> frozenset[str]:
    """Return the endings of images that can be read, in lower case."""
    formats = readable_formats()
    endings = Image.registered_extensions().items()
    readable = {ending for ending, name in endings if name in formats}
    return frozenset(readable - AMBIGUOUS | {".mpo"})


@cache
def readable_formats() -> frozenset[str]:
    """Return the names of the formats that PIL decodes."""
    Image.init()
    return frozenset(Image.OPEN) - NOT_DECODED


def is_image(path: Path) -> bool:
    """Return whether a file is an image that can be read, unless it is damaged."""
    ending = path.suffix.lower()
    if ending in image_endings():
        return True
    return ending not in OTHER_ENDINGS and has_signature(path)


def has_signature(path: Path) -> bool:
    """Return whether a file begins as images of one of PIL's formats do."""
    try:
        with open(path, "rb") as file:
            prefix = file.read(SIGNATURE_BYTES)
        # Formats without a signature would take any file.
        names = [name for name in readable_formats() if accepts(name, prefix)]
        if not names:
            return False
        with Image.open(path, formats=names):
            return True
    except Exception:  # damaged files make the decoders fail in many ways
        return False


def accepts(name: str, prefix: bytes) -> bool:
    """Return whether a file that begins so may be of one of PIL's formats."""
    accept = Image.OPEN[name][1]
    try:
        return accept is not None and accept(prefix) is True
    except Exception:  # the file may be too short
        return False


def describe_others(folder: Path, others: Sequence[Path], wanted: str) -> str:
    """Return in one line how many files of a folder were not looked at, by ending.

    Args:
        folder: the folder.
        others: its files that are not ``wanted``.
        wanted: "images", for example.
    """
    counts = Counter(path.suffix.lower() or "no ending" for path in others)
    endings = ", ".join(f"{ending}: {count}" for ending, count in counts.most_common(8))
    if len(counts) > 8:
        endings += ", ..."

    subject = "1 file was" if len(others) == 1 else f"{len(others)} files were"
    return f"{folder}: {subject} not looked at, being no {wanted} that can be read ({endings})"


def is_hidden(path: Path) -> bool:
    """Return whether a file is one that systems keep for themselves."""
    return path.name.startswith(".") or path.name.lower() in ("thumbs.db", "desktop.ini")
