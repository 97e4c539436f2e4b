"""Image files of a data set: where they lie, also if their names come from another computer."""

from __future__ import annotations

import os
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from urllib.parse import unquote

from salience_detr.data.coco_format import image_path, is_file

# Files that a message names.
NUM_NAMED = 4
# Files below the folder of the images that are looked at; a whole disk is not searched.
MOST_FILES = 2_000_000

# Beginnings of names that are complete on the computer they come from.
DRIVE = re.compile(r"[A-Za-z]:(?=[/\\])")
SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^/]*")
# Label Studio puts eight random digits before the names of uploaded files.
UPLOADED = re.compile(r"[0-9a-f]{8}-(?=.)")


@dataclass(frozen=True)
class LocatedImages:
    """Paths of the images of a data set.

    Attributes:
        paths: path by file name; of a missing image, where it would lie.
        moved: path relative to the folder of the images, of those that lie elsewhere than their
            names say.
        missing: file names of the images that are not there, each with a remark or "".
    """

    paths: dict[str, Path]
    moved: dict[str, str] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)


def locate_images(image_root: Path, file_names: Sequence[str]) -> LocatedImages:
    """Find the images of a data set.

    A name may come from another computer: a path of Windows, an absolute path, an upload folder, an
    encoded URL. Then the image is the one below the folder whose path ends with the most parts of
    the name, if there is only one such image and no other name stands for it.

    Args:
        image_root: folder that the file names are relative to.
        file_names: names as they are in the annotations.
    """
    paths = {name: image_path(image_root, name) for name in file_names}
    listing = FolderListing()
    absent = [name for name, path in paths.items() if not listing.holds(path)]
    if not absent:
        return LocatedImages(paths)

    index = FileIndex(image_root)
    # A plain name that is not beside its fellows is missing.
    has_plain = any(listing.holds(path) and path.parent == image_root for path in paths.values())
    matches: dict[str, list[str]] = {}
    for name in absent:
        is_plain = "/" not in name and "\\" not in name and "%" not in name
        matches[name] = [] if is_plain and has_plain else index.find(name)

    # Two names cannot stand for one image.
    taken = {os.path.relpath(paths[name], image_root) for name in paths.keys() - matches.keys()}
    uses = Counter(found[0] for found in matches.values() if len(found) == 1)

    located = LocatedImages(paths)
    for name, found in matches.items():
        if len(found) == 1 and uses[found[0]] == 1 and found[0] not in taken:
            located.paths[name] = image_root / found[0]
            located.moved[name] = Path(found[0]).as_posix()
        elif len(found) == 1:
            located.missing[name] = f"several names end like {found[0]}"
        elif found:
            named = " or ".join(found[:NUM_NAMED])
            located.missing[name] = f"it could be {named}"
        else:
            located.missing[name] = ""
    return located


class FolderListing:
    """Names of the files in folders, each of which is read once.

    For a hundred thousand images it takes a tenth of the time of asking for each.
    """

    def __init__(self) -> None:
        self.names: dict[str, set[str]] = {}

    def holds(self, path: Path) -> bool:
        """Return whether there is a file."""
        folder, name = os.path.split(path)
        if folder not in self.names:
            try:
                with os.scandir(folder or ".") as entries:
                    self.names[folder] = {entry.name for entry in entries if entry.is_file()}
            except (OSError, ValueError):  # no such folder, or no possible name
                self.names[folder] = set()

        # Some file systems ignore the case of letters.
        return name in self.names[folder] or is_file(path)


class FileIndex:
    """Files in a folder and below it, by name; upper and lower case are the same."""

    def __init__(self, root: Path) -> None:
        self.by_name: dict[str, list[tuple[str, ...]]] = defaultdict(list)
        self.folders: set[str] = set()

        for parts in islice(files_below(root), MOST_FILES):
            self.by_name[key_of(parts[-1])].append(parts)
            self.folders.update(map(key_of, parts[:-1]))

    def find(self, name: str) -> list[str]:
        """Find the files whose paths end with the most parts of a name.

        Returns:
            Paths relative to the folder. Several are equally good, none fits if it is empty.
        """
        for parts in readings(name):
            wanted = [key_of(part) for part in reversed(parts)]
            lengths = {}
            for candidate in self.by_name.get(wanted[0], []):
                lengths[candidate] = common_end(wanted[::-1], list(map(key_of, candidate)))

            best = []
            longest = max(lengths.values(), default=0)
            for candidate, length in lengths.items():
                if length == longest and not self.is_other(wanted, candidate, length):
                    best.append(candidate)
            if best:
                return sorted(os.path.join(*candidate) for candidate in best)
        return []

    def is_other(self, wanted: Sequence[str], candidate: Sequence[str], length: int) -> bool:
        """Return whether the image of a name belongs into another folder than a candidate lies in.

        train/1.jpg is not val/1.jpg if there is a folder train.

        Args:
            wanted: keys of the parts of the name, the last part first.
            candidate: parts of the path of the candidate.
            length: number of parts that both end with.
        """
        is_partial = length < len(candidate) and length < len(wanted)
        return is_partial and wanted[length] in self.folders


def readings(name: str) -> list[list[str]]:
    """Return the ways to read a file name as the parts of a path, the most literal first."""
    plain = SCHEME.sub("", DRIVE.sub("", name)).replace("\\", "/")
    # Label Studio names local files by /data/local-files/?d=FOLDER/NAME.
    plain = plain.replace("?d=", "/")
    texts = [plain, plain.partition("?")[0]]
    texts += [unquote(text).replace("\\", "/") for text in texts]

    found: list[list[str]] = []
    for text in texts:
        parts = [part for part in text.split("/") if part not in ("", ".", "..")]
        if parts and parts not in found:
            found.append(parts)

    for parts in list(found):
        without_digits = [*parts[:-1], UPLOADED.sub("", parts[-1])]
        if without_digits not in found:
            found.append(without_digits)
    return found


def common_end(first: Sequence[str], second: Sequence[str]) -> int:
    """Return the number of parts that two paths end with."""
    length = 0
    for part, other in zip(reversed(first), reversed(second), strict=False):
        if part != other:
            break
        length += 1
    return length


def key_of(part: str) -> str:
    """Return a part of a path as other file systems may write it, too."""
    return unicodedata.normalize("NFC", part).casefold()


def files_below(root: Path) -> Iterator[tuple[str, ...]]:
    """Yield the files in a folder and below it, in a fixed order, as parts of relative paths."""
    for folder, folders, names in os.walk(root):
        folders.sort()
        parents = Path(folder).relative_to(root).parts
        for name in sorted(names):
            yield (*parents, name)


def describe_moved(located: LocatedImages, image_root: Path) -> list[str]:
    """Return a line on the images that lie elsewhere, and one on those that are not unambiguous."""
    lines = []
    if located.moved:
        name, place = next(iter(located.moved.items()))
        lines.append(
            f"{len(located.moved)} of {len(located.paths)} images are found by the last parts of "
            f"their names below {image_root}, such as {name!r} as {place}"
        )

    unclear = [f"{name!r}: {remark}" for name, remark in located.missing.items() if remark]
    if unclear:
        lines.append(
            f"{len(unclear)} images are not found below {image_root}, as the ends of their names "
            f"are ambiguous: {'; '.join(unclear[:NUM_NAMED])}"
        )
    return lines


def describe_folder(folder: Path) -> str:
    """Return what lies in a folder and below it, in a few words."""
    if not folder.is_dir():
        return f"there is no folder {folder}"

    named = ["/".join(parts) for parts in islice(files_below(folder), NUM_NAMED + 1)]
    if not named:
        return f"{folder} is empty"
    more = ", ..." if len(named) > NUM_NAMED else ""
    return f"{folder} holds {', '.join(named[:NUM_NAMED])}{more}"
