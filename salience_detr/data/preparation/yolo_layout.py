"""Descriptions of YOLO data sets: Ultralytics' data.yaml, Darknet's obj.data, or names alone.

Names alone (classes.txt, obj.names, notes.json) is what Label Studio, labelImg and CVAT write.
"""

from __future__ import annotations

import codecs
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from salience_detr.data.coco_format import DatasetError
from salience_detr.data.preparation.files import find_files, first_file
from salience_detr.utils.errors import shorten
from salience_detr.utils.files import parse_json

# Names under which a split is found.
SPLITS = {
    "train": ("train", "training"), "val": ("val", "valid", "validation"), "test": ("test",)
}  # fmt: skip
# Files that describe a data set, relative to its folder, the first one counts.
DESCRIPTIONS = (
    "*.yaml", "*.yml", "*.data", "classes.txt", "*.names", "labels/classes.txt", "**/classes.txt",
    "**/*.names", "notes.json",
)  # fmt: skip
# Where the images of a split are, if only the names of the classes are given.
PLACES = ("{s}.txt", "images/{s}", "{s}/images", "{s}")


@dataclass(frozen=True)
class YoloDescription:
    """Description of a data set.

    Attributes:
        names: of the classes, by the index that the labels give.
        splits: images of each split.
        has_keypoints: lines hold keypoints after the box.
        remarks: what was assumed, for the user.
    """

    names: dict[int, str]
    splits: dict[str, list[Path]]
    has_keypoints: bool = False
    remarks: list[str] = field(default_factory=list)


def find_description(source: Path) -> Path:
    """Find the file that describes the data set of a folder; a file is returned as it is.

    Raises:
        DatasetError: the folder has none, or several .yaml files of other names.
    """
    if not source.is_dir():
        return source

    for pattern in DESCRIPTIONS:
        paths = sorted(path for path in source.glob(pattern) if path.is_file())
        candidates = [path for path in paths if path.stem in ("data", "dataset", "obj")] or paths
        # labelImg writes the same names into every folder.
        if candidates and len({path.read_bytes() for path in candidates}) == 1:
            return candidates[0]
        if candidates:
            some = shorten([path.name for path in candidates], 5)
            raise DatasetError(
                f"name one of the several {pattern} files in {source} ({some}): it tells the "
                "classes and the splits"
            )

    raise DatasetError(
        f"there is no data.yaml, obj.data, classes.txt or notes.json in {source}: one of them "
        "tells the classes"
    )


def read_description(path: Path, root: Path | None = None) -> YoloDescription:
    """Read the description of a YOLO data set.

    Args:
        path: of the description.
        root: folder of the data set; by default that of the description.

    Raises:
        DatasetError: it lacks something, or a folder that it names is not there.
    """
    root = root or path.parent
    if path.suffix == ".data":
        return read_darknet(path)
    if path.suffix in (".txt", ".names", ".json"):
        return describe_folder(root, read_names(path))

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise DatasetError(f"{path} cannot be read as YAML in UTF-8 ({reason})") from error
    if not isinstance(content, dict) or "names" not in content:
        raise DatasetError(f"{path} is not a YOLO description with 'names', 'train' and 'val'")

    names = class_names(content["names"], path)
    return describe_splits(content, names, path, has_keypoints=bool(content.get("kpt_shape")))


def describe_splits(
    content: Mapping[str, object], names: dict[int, str], path: Path, *, has_keypoints: bool = False
) -> YoloDescription:
    """Find the images of the splits that a description names.

    A test split that is not there is left out: exports name it without writing it.

    Raises:
        DatasetError: there is no split, or its images are not there.
    """
    # "path" is often missing, or that of another computer.
    base = Path(path.parent, str(content.get("path") or "."))
    splits = {}
    remarks: list[str] = []
    for split, keys in SPLITS.items():
        value = next((content[key] for key in keys if content.get(key)), None)
        if value is None:
            continue
        try:
            splits[split] = split_images(value, (base, path.parent), f"{path}: {split}")
        except DatasetError as error:
            if split == "test":
                remarks.append(f"the test split is left out: {error}")
            elif split == "val" and "train" in splits:
                raise DatasetError(
                    f"{error}; correct it, or remove it and add --val-fraction 0.2"
                ) from error
            else:
                raise

    if not splits:
        raise DatasetError(f"{path} names no images: 'train' and 'val' are missing")
    return YoloDescription(names, splits, has_keypoints, remarks)


def read_darknet(path: Path) -> YoloDescription:
    """Read Darknet's obj.data: lines "train = FILE", "valid = FILE" and "names = FILE".

    Raises:
        DatasetError: it lacks something, or a file that it names is not there.
    """
    content = {}
    for line in decode(path.read_bytes()).splitlines():
        key, _, value = line.partition("=")
        content[key.strip()] = value.strip()

    names_file = find_path(content.get("names") or "obj.names", (path.parent,))
    if names_file is None or not names_file.is_file():
        raise DatasetError(f"{path}: there is no file of the names, {content.get('names')!r}")
    return describe_splits(content, read_names(names_file), path)


def describe_folder(root: Path, names: dict[int, str]) -> YoloDescription:
    """Find the images of a data set of which only the names of the classes are known.

    Raises:
        DatasetError: there are no images.
    """
    splits = {}
    for split, keys in SPLITS.items():
        places = (root / place.format(s=key) for place, key in product(PLACES, keys))
        place = next(filter(Path.exists, places), None)
        if place is not None:
            splits[split] = split_images(str(place), (root,), str(root))

    if not splits:
        folder = root / "images"
        splits["train"] = find_files(folder if folder.is_dir() else root)
    if not any(splits.values()):
        raise DatasetError(f"there are no images in {root}, nor in {root / 'images'}")
    return YoloDescription(names, splits)


def read_names(path: Path) -> dict[int, str]:
    """Read the names of classes from a text file of one a line, or Label Studio's notes.json.

    Raises:
        DatasetError: the file cannot be read, or has no names.
    """
    try:
        text = decode(path.read_bytes())
        if path.suffix == ".json":
            categories = parse_json(text)["categories"]
            return class_names({entry["id"]: entry["name"] for entry in categories}, path)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DatasetError(f"{path} cannot be read as names of classes ({error})") from error

    # A blank line in between would move the names after it.
    return class_names([line.strip() for line in text.rstrip().splitlines()], path)


def class_names(names: Any, path: Path) -> dict[int, str]:
    """Return the names of the classes by index.

    Args:
        names: list, or mapping of indices.
        path: file that they are from, for messages.

    Raises:
        DatasetError: the names are something else.
    """
    entries = dict(enumerate(names)) if isinstance(names, list) else names
    try:
        by_index = {int(index): str(name) for index, name in entries.items()}
        if None in entries.values() or "" in entries.values() or min(by_index) < 0:
            raise ValueError
    except (AttributeError, TypeError, ValueError) as error:
        needed = "a list, or a mapping of indices to names, is needed"
        raise DatasetError(f"{path}: names is {names!r:.80}; {needed}") from error

    # YAML takes yes, no, on and off for truth values.
    if any(isinstance(name, bool) for name in entries.values()):
        raise DatasetError(
            f"{path}: names is {names!r:.80}; put yes, no, on, off, true and false in quotes"
        )
    return dict(sorted(by_index.items()))


def split_images(value: object, folders: Sequence[Path], where: str) -> list[Path]:
    """Find the images of a split.

    Args:
        value: folder, which is searched with all below it; text file that lists images; or a list
            of both.
        folders: that paths may be relative to.
        where: place of the value, for messages.

    Raises:
        DatasetError: the value is none of these, or not there.
    """
    if isinstance(value, list):
        images: set[Path] = set()
        for part in value:
            images.update(split_images(part, folders, where))
        return sorted(images)

    if not isinstance(value, str):
        needed = "a folder, a text file, or a list of them is needed"
        raise DatasetError(f"{where} is {value!r:.80}; {needed}")

    found = find_path(value, folders)
    if found is None:
        tried = " or ".join(sorted(set(map(str, folders))))
        raise DatasetError(f"{where}: there is no {value!r} in {tried}")

    found_images = find_files(found) if found.is_dir() else read_image_list(found, folders)
    if not found_images:
        raise DatasetError(f"{where}: there are no images in {found}")
    return found_images


def find_path(name: str, folders: Sequence[Path]) -> Path | None:
    """Find a file or folder that is named as seen from one of some folders, or from elsewhere."""
    return next(filter(Path.exists, candidate_paths(name, folders)), None)


def candidate_paths(name: str, folders: Sequence[Path]) -> Iterator[Path]:
    """Yield the places of a path, which may be that of another computer, the likeliest first."""
    slashed = name.replace("\\", "/")
    for variant in (name, slashed, slashed.removeprefix("../")):
        yield from (folder / variant for folder in folders)

    # Its last parts; "images" alone would be the folder of any split.
    parts = [part for part in PurePosixPath(slashed).parts if part not in ("..", "/")]
    for start in range(len(parts)):
        if parts[start:] not in (["images"], ["labels"]):
            yield from (folder.joinpath(*parts[start:]) for folder in folders)


def read_image_list(path: Path, folders: Sequence[Path]) -> list[Path]:
    """Read a text file that names an image a line, relative to itself or to one of the folders."""
    images = []
    for line in decode(path.read_bytes()).splitlines():
        if not line.strip():
            continue
        name = line.strip()
        image = first_file(candidate_paths(name, (path.parent, *folders)))
        images.append(Path(os.path.normpath(image or folders[0] / name)))
    return images


def decode(data: bytes) -> str:
    """Decode a text file of UTF-8 or UTF-16, replacing what is neither."""
    is_utf_16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    return data.decode("utf-16" if is_utf_16 else "utf-8-sig", errors="replace")
