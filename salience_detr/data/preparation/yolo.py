"""Conversion of YOLO's text files to a COCO data set."""

from __future__ import annotations

import codecs
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import yaml

from salience_detr.data.coco_format import DatasetError
from salience_detr.data.preparation.conversion import (
    Conversion,
    ImageLabels,
    UnusableError,
    assemble,
    clip_box,
    read_image_size,
    read_labels,
)
from salience_detr.data.preparation.files import find_files, first_file
from salience_detr.data.preparation.frames import Box

# Names under which a split is found.
SPLITS = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}
# Text files that are no labels.
OTHER_TEXTS = {"classes.txt", "train.txt", "val.txt", "test.txt", "notes.txt"}


@dataclass(frozen=True)
class YoloDescription:
    """Content of a data.yaml.

    Attributes:
        names: of the classes, by the index that the labels give.
        splits: images of each split.
        has_keypoints: lines hold keypoints after the box.
    """

    names: dict[int, str]
    splits: dict[str, list[Path]]
    has_keypoints: bool = False


def convert_yolo(
    images: Sequence[Path], image_root: Path, description: YoloDescription, *, workers: int = 0
) -> Conversion:
    """Convert text files to a COCO data set, whose category ids are YOLO's indices, from 0.

    Args:
        images: of the split; :func:`label_candidates` finds their labels as YOLO does.
        image_root: folder that the names of the images become relative to.
        description: tells the classes, and what the lines hold.
        workers: processes that read; 0 reads in this one.

    Raises:
        DatasetError: there are no images.
    """
    if not images:
        raise DatasetError(f"there are no images in {image_root}")

    read = partial(read_yolo, image_root=image_root, has_keypoints=description.has_keypoints)
    category_ids = {index: index for index in description.names}
    conversion = assemble(read_labels(read, images, workers), category_ids, description.names)

    for path in find_orphans(images):
        conversion.problems.append(f"{path}: there is no image for these labels")
    return conversion


def label_candidates(image: Path) -> list[Path]:
    """Return the places of an image's labels, the usual one first.

    The last folder "images" of the path becomes "labels", or the labels lie beside the image.
    """
    beside = image.with_suffix(".txt")
    *folders, name = beside.parts
    if "images" not in folders:
        return [beside]

    last = len(folders) - 1 - folders[::-1].index("images")
    folders[last] = "labels"
    return [Path(*folders, name), beside]


def find_labels(image: Path) -> Path | None:
    """Find the file of labels of an image."""
    return first_file(label_candidates(image))


def find_orphans(images: Sequence[Path]) -> list[Path]:
    """Find files beside the labels of some images that are labels of no image."""
    texts: set[Path] = set()
    for folder in {label_candidates(image)[0].parent for image in images}:
        texts.update(folder.glob("*.txt"))

    # An image of another split may be in the same folder.
    neighbors = set(images)
    for folder in {image.parent for image in images}:
        neighbors.update(find_files(folder))
    texts -= {label_candidates(image)[0] for image in neighbors}
    return sorted(path for path in texts if path.name not in OTHER_TEXTS)


def read_yolo(image: Path, image_root: Path, has_keypoints: bool) -> ImageLabels:
    """Read the labels of an image; without a file of labels, or with an empty one, it has no boxes.

    Args:
        image: image file.
        image_root: folder that the name of the image becomes relative to.
        has_keypoints: lines hold keypoints after the box.

    Raises:
        UnusableError: the image cannot be read.
    """
    size, _ = read_image_size(image)
    labels = ImageLabels(Path(os.path.relpath(image, image_root)).as_posix(), size)

    # Without labels the image is background, as YOLO takes it.
    path = find_labels(image)
    if path is None:
        return labels

    for number, line in enumerate(decode(path.read_bytes()).splitlines(), 1):
        if not line.strip():
            continue
        try:
            labels.boxes.append(parse_line(line, size, has_keypoints))
        except UnusableError as error:
            labels.problems.append(f"{path}, line {number}: {error}")
    return labels


def decode(data: bytes) -> str:
    """Decode a text file of UTF-8 or UTF-16, replacing what is neither."""
    is_utf_16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    return data.decode("utf-16" if is_utf_16 else "utf-8-sig", errors="replace")


def parse_line(line: str, size: tuple[int, int], has_keypoints: bool) -> tuple[int, Box]:
    """Parse a line of class, center and size, or class and polygon, relative to the image.

    Args:
        line: of a file of labels.
        size: (width, height) of the image.
        has_keypoints: the numbers after the box are keypoints.

    Raises:
        UnusableError: the line is something else, or nothing of the box is in the image.
    """
    try:
        index, *numbers = (float(word) for word in line.split())
        x0, y0, x1, y1 = relative_corners(numbers[:4] if has_keypoints else numbers)
        if not index.is_integer():
            raise ValueError
    except ValueError as error:
        raise UnusableError(f"{line.strip()[:60]!r} is not class x y width height") from error

    width, height = size
    box = clip_box((x0 * width, y0 * height, x1 * width, y1 * height), size)
    if box is None:
        raise UnusableError("a box outside the image or without area")
    return int(index), box


def relative_corners(numbers: Sequence[float]) -> Box:
    """Return the corners of a box "x y width height" or of a polygon "x y x y x y ...".

    Raises:
        ValueError: the numbers are neither, or not finite.
    """
    # False for NaN as well.
    if not all(abs(value) < 1e6 for value in numbers):
        raise ValueError

    if len(numbers) == 4:
        x, y, width, height = numbers
        return x - width / 2, y - height / 2, x + width / 2, y + height / 2

    # The box of a polygon is its extent.
    if len(numbers) < 6 or len(numbers) % 2:
        raise ValueError
    return min(numbers[::2]), min(numbers[1::2]), max(numbers[::2]), max(numbers[1::2])


def find_description(source: Path) -> Path:
    """Find the data.yaml of a folder; a file is returned as it is.

    Raises:
        DatasetError: the folder has no .yaml file, or several of other names.
    """
    if not source.is_dir():
        return source

    paths = sorted([*source.glob("*.yaml"), *source.glob("*.yml")])
    candidates = [path for path in paths if path.stem in ("data", "dataset")] or paths
    if len(candidates) == 1:
        return candidates[0]

    problem = "there is no data.yaml"
    if paths:
        problem = "name one of the several .yaml files"
    raise DatasetError(f"{problem} in {source}: it tells the classes and the splits")


def read_description(path: Path) -> YoloDescription:
    """Read a YOLO data.yaml.

    Raises:
        DatasetError: it lacks something, or a folder that it names is not there.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise DatasetError(f"{path} cannot be read as YAML in UTF-8 ({reason})") from error
    if not isinstance(content, dict) or "names" not in content:
        raise DatasetError(f"{path} is not a YOLO description with 'names', 'train' and 'val'")

    # "path" is often missing, or that of another computer.
    base = Path(path.parent, str(content.get("path") or "."))
    splits = {}
    for split, keys in SPLITS.items():
        value = next((content[key] for key in keys if content.get(key)), None)
        if value is not None:
            splits[split] = split_images(value, (base, path.parent), f"{path}: {split}")
    if not splits:
        raise DatasetError(f"{path} names no images: 'train' and 'val' are missing")

    names = class_names(content["names"], path)
    return YoloDescription(names, splits, bool(content.get("kpt_shape")))


def class_names(names: Any, path: Path) -> dict[int, str]:
    """Return the names of the classes by index.

    Args:
        names: list, or mapping of indices, of a data.yaml.
        path: data.yaml, for messages.

    Raises:
        DatasetError: the names are something else.
    """
    entries = dict(enumerate(names)) if isinstance(names, list) else names
    try:
        by_index = {int(index): str(name) for index, name in entries.items()}
        if None in entries.values() or min(by_index) < 0:
            raise ValueError
    except (AttributeError, TypeError, ValueError) as error:
        needed = "a list, or a mapping of indices to names, is needed"
        raise DatasetError(f"{path}: names is {names!r:.80}; {needed}") from error
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

    # Exports often name the folder as seen from somewhere else.
    slashed = value.replace("\\", "/")
    names = (value, slashed, slashed.removeprefix("../"))
    candidates = (folder / name for name, folder in product(names, folders))
    found = next(filter(Path.exists, candidates), None)
    if found is None:
        tried = " or ".join(sorted(set(map(str, folders))))
        raise DatasetError(f"{where}: there is no {value!r} in {tried}")

    if found.is_dir():
        return find_files(found)
    return read_image_list(found, folders)


def read_image_list(path: Path, folders: Sequence[Path]) -> list[Path]:
    """Read a text file that names an image a line, relative to itself or to one of the folders."""
    images = []
    for line in decode(path.read_bytes()).splitlines():
        if not line.strip():
            continue
        name = line.strip()
        image = first_file(folder / name for folder in (path.parent, *folders))
        images.append(Path(os.path.normpath(image or folders[0] / name)))
    return images
