"""What --input names besides files: a list on standard input, and addresses of files."""

from __future__ import annotations

import http.client
import os
import shutil
import sys
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit

from detectron2.utils import comm

from salience_detr.inference.live import hide_password, is_file_address
from salience_detr.utils.files import UsedPaths, written_whole

STDIN = "-"
DOWNLOADS = "downloads"  # folder of the files that addresses name, in the folder of the outputs
TIMEOUT = 30.0  # seconds without data after which a download is given up


@dataclass
class Words:
    """Words of --input, once the list is read and addresses are downloaded.

    Attributes:
        patterns: paths, folders and glob patterns.
        listed: paths of the list on standard input.
        missing: a message for each address that cannot be downloaded.
    """

    patterns: list[str] = field(default_factory=list)
    listed: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)


def resolve_words(words: Sequence[str], output: Path) -> Words:
    """Read the list on standard input, and download the files that addresses name.

    Under torchrun the first process does it for all.

    Args:
        words: words of --input.
        output: folder of the outputs, whose folder "downloads" gets the files.

    Raises:
        ValueError: the list has no path.
    """
    resolved: Words | ValueError | None = None
    if comm.is_main_process():
        try:
            resolved = resolve(words, output)
        except ValueError as error:  # the others must not wait for this process
            resolved = error

    resolved = comm.all_gather(resolved)[0]
    if isinstance(resolved, ValueError):
        raise resolved
    assert resolved is not None
    return resolved


def resolve(words: Sequence[str], output: Path) -> Words:
    """Do the work of :func:`resolve_words` in one process."""
    resolved = Words()

    # Two addresses may end with the same name.
    used = UsedPaths()
    for word in words:
        if word == STDIN:
            resolved.listed = read_list(sys.stdin.buffer.read())
        elif is_file_address(word):
            try:
                resolved.patterns.append(str(download(word, output / DOWNLOADS, used)))
            except (OSError, ValueError, http.client.HTTPException) as error:
                reason = getattr(error, "reason", None) or error
                title = hide_password(word)
                resolved.missing.append(f"--input {title} cannot be downloaded: {reason}")
        else:
            resolved.patterns.append(word)
    return resolved


def read_list(content: bytes) -> list[str]:
    """Return the paths of a list, one a line; empty lines are left out.

    Raises:
        ValueError: there is none.
    """
    paths = []
    for line in content.split(b"\n"):
        # Lists of Windows end their lines with both.
        path = line.rstrip(b"\r")
        if path.strip():
            paths.append(os.fsdecode(path))

    if not paths:
        raise ValueError("--input -: there is no path on standard input; write one a line")
    return paths


def download(address: str, folder: Path, used: UsedPaths) -> Path:
    """Download a file into a folder, under its own name, and return its path.

    Raises:
        OSError, ValueError, http.client.HTTPException: it cannot be had.
    """
    name = Path(unquote(urlsplit(address).path)).name
    path = used.unused_path(folder / name)

    # A download that breaks off leaves no file.
    folder.mkdir(parents=True, exist_ok=True)
    with (
        urllib.request.urlopen(address, timeout=TIMEOUT) as answer,
        written_whole(path, sync=False) as temporary,
        open(temporary, "wb") as file,
    ):
        shutil.copyfileobj(answer, file)
    return path
