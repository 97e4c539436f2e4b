"""Validation of a data set in COCO's format, which lists all of its problems at once.

Training stops at the first problem; validation reads every annotation and every image.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from salience_detr.data.coco_format import (
    LISTS,
    box_fault,
    entry_fault,
    image_path,
    is_id,
    read_coco,
)
from salience_detr.data.images import UNREADABLE, ImageReadError, read_image
from salience_detr.data.preparation.frames import Size, read_size
from salience_detr.data.preparation.parallel import map_files

# Kinds of problems that training would stop at or get wrong ...
ERRORS = (
    "missing image", "unreadable image", "wrong size", "unusable entry", "duplicate image id",
    "duplicate annotation id", "duplicate category id", "malformed box", "box without area",
    "box outside the image", "unknown category", "unknown image", "nothing to train on",
    "image in both sets",
)  # fmt: skip
# ... and kinds that may be intended.
WARNINGS = (
    "box reaching out of the image", "annotation id 0", "image without boxes",
    "category without boxes", "category name twice", "image of nearly one color",
    "image twice in the set",
)  # fmt: skip
# Rounding of annotation tools, in pixels.
TOLERANCE = 0.01
# Range of values, of 256, in which nothing can be seen: such as 12 bits in a file of 16 bits.
FAINT = 16

# An entry of one of the lists of a COCO file.
Entry = dict[str, Any]


@dataclass(frozen=True)
class ImageFile:
    """Content of an image file.

    Attributes:
        size: EXIF-corrected (width, height); None if the file cannot be read.
        orientation: EXIF orientation.
        digest: SHA-256 of the file.
        is_faint: whether its pixels hardly differ.
        problem: reason why it cannot be read.
    """

    size: tuple[int, int] | None = None
    orientation: int = 1
    digest: str = ""
    is_faint: bool = False
    problem: str = ""


@dataclass
class ValidationResult:
    """Problems of a data set, and what was read to find them.

    Attributes:
        json_file: annotation file.
        content: images, annotations and categories as read.
        files: image file of each entry of ``content["images"]``.
        problems: descriptions by kind (``ERRORS`` and ``WARNINGS``).
    """

    json_file: Path
    content: dict[str, list[Any]]
    files: list[ImageFile]
    problems: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    @property
    def num_errors(self) -> int:
        return sum(len(self.problems.get(kind, ())) for kind in ERRORS)

    def usable(self, kind: str) -> list[Entry]:
        """Return the valid entries of a list, whatever sizes of images and boxes are."""
        return [entry for entry in self.content[kind] if is_usable(kind, entry)]

    def images(self) -> list[tuple[Entry, ImageFile]]:
        """Return the usable images, each with its file."""
        pairs = zip(self.content["images"], self.files, strict=True)
        return [(entry, file) for entry, file in pairs if is_usable("images", entry)]


def is_usable(kind: str, entry: object) -> bool:
    """Return whether an entry is valid, whatever the size of an image or a box is."""
    without = ("width", "height") if kind == "images" else ("bbox",)
    return entry_fault(kind, entry, without=without) is None


def validate(json_file: Path, image_root: Path, *, workers: int = 0) -> ValidationResult:
    """Read all of a data set, and list its problems.

    Args:
        json_file: annotations in COCO's format.
        image_root: folder of the images.
        workers: processes that read images; 0 reads in this one.

    Raises:
        DatasetError: the file is not JSON, or lacks one of the three lists.
    """
    content = read_coco(json_file)
    paths = []
    for entry in content["images"]:
        name = entry.get("file_name") if isinstance(entry, dict) else None
        paths.append(image_path(image_root, name) if isinstance(name, str) else Path())

    result = ValidationResult(json_file, content, map_files(read_file, paths, workers, "images"))
    for check in (check_entries, check_categories, check_images, check_boxes):
        for kind, description in check(result):
            result.problems[kind].append(description)
    return result


def read_file(path: Path) -> ImageFile:
    """Read an image as training does."""
    if not path.is_file():
        return ImageFile(problem="missing")

    try:
        pixels = read_image(str(path))
        size, orientation = read_size(path)
    except (ImageReadError, *UNREADABLE) as error:
        return ImageFile(problem=str(error))

    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    is_faint = int(pixels.max()) - int(pixels.min()) < FAINT
    return ImageFile(size, orientation, digest, is_faint)


def check_entries(result: ValidationResult) -> Iterator[tuple[str, str]]:
    """Yield kind and description of problems of the entries themselves, and of their ids."""
    singular = {"images": "image", "categories": "category", "annotations": "annotation"}
    for kind in LISTS:
        ids = []
        for number, entry in enumerate(result.content[kind]):
            problem = entry_fault(kind, entry, without=("bbox",))
            if problem is not None:
                yield "unusable entry", f"number {number} of {kind} {problem}"
            if isinstance(entry, dict) and is_id(entry.get("id")):
                ids.append(entry["id"])

        for entry_id, count in Counter(ids).items():
            if count > 1:
                yield f"duplicate {singular[kind]} id", f"{entry_id!r}, {count} times"
        if kind == "images" and len({type(image_id) for image_id in ids}) > 1:
            yield "unusable entry", "some image ids are numbers and others are texts"

    for kind in ("images", "categories"):
        if not result.usable(kind):
            yield "nothing to train on", f"there are no {kind}"


def check_categories(result: ValidationResult) -> Iterator[tuple[str, str]]:
    """Yield kind and description of problems of the usable categories."""
    categories = result.usable("categories")
    with_boxes = {annotation["category_id"] for annotation in result.usable("annotations")}
    for category in categories:
        if category["id"] not in with_boxes:
            yield "category without boxes", f"{category['name']} (id {category['id']})"

    names = Counter(category["name"] for category in categories)
    for name, count in names.items():
        if count > 1:
            yield "category name twice", name


def check_images(result: ValidationResult) -> Iterator[tuple[str, str]]:
    """Yield kind and description of problems of the usable images."""
    with_boxes = {annotation["image_id"] for annotation in result.usable("annotations")}
    first_names: dict[str, str] = {}
    for entry, file in result.images():
        name = entry["file_name"]
        if file.problem == "missing":
            yield "missing image", name
        elif file.size is None:
            yield "unreadable image", file.problem
        if file.size is None:
            continue

        annotated_size = (entry.get("width"), entry.get("height"))
        if entry_fault("images", entry) is None and annotated_size != file.size:
            size = "{}x{}".format(*file.size)
            yield (
                "wrong size",
                f"{name} is {size}, the file says {entry['width']}x{entry['height']}",
            )

        if entry["id"] not in with_boxes:
            yield "image without boxes", name
        if file.is_faint:
            yield "image of nearly one color", name

        if file.digest in first_names:
            yield "image twice in the set", f"{name} is the same as {first_names[file.digest]}"
        first_names.setdefault(file.digest, name)


def check_boxes(result: ValidationResult) -> Iterator[tuple[str, str]]:
    """Yield kind and description of problems of the usable annotations and their boxes."""
    sizes = box_frames(result)
    image_ids = {entry["id"] for entry in result.usable("images")}
    category_ids = {category["id"] for category in result.usable("categories")}
    for annotation in result.usable("annotations"):
        image_id = annotation["image_id"]
        category_id = annotation["category_id"]
        where = f"annotation {annotation['id']} (image {image_id})"

        # COCO's evaluation takes a match with id 0 for none.
        if annotation["id"] == 0:
            effect = "other programs' evaluation would never count it as found"
            yield "annotation id 0", f"{where}: {effect}"
        if category_id not in category_ids:
            yield "unknown category", f"{where} has the category id {category_id}"
        if image_id not in image_ids:
            yield "unknown image", f"{where}: there is no image {image_id!r}"

        width, height = sizes.get(image_id, (math.inf, math.inf))
        box = annotation.get("bbox")
        kind = check_box(box, (width, height))
        if kind is not None:
            yield kind, f"{where} has the bbox {box!r:.80} in an image of {width}x{height}"


def box_frames(result: ValidationResult) -> dict[Any, Size]:
    """Return the (width, height) of the frame of each image's boxes by the image's id.

    It is the annotated size or, where that is none, the EXIF-corrected one.
    """
    sizes: dict[Any, Size] = {}
    for entry, file in result.images():
        if entry_fault("images", entry) is None:
            sizes.setdefault(entry["id"], (entry["width"], entry["height"]))
        elif file.size is not None:
            sizes.setdefault(entry["id"], file.size)
    return sizes


def check_box(box: object, size: Size) -> str | None:
    """Return the kind of problem of an (x, y, width, height) box in an image of (width, height)."""
    if box_fault(box) is not None:
        return "malformed box"

    x, y, width, height = box  # type: ignore[misc]
    if width <= 0 or height <= 0:
        return "box without area"

    if x >= size[0] or y >= size[1] or x + width <= 0 or y + height <= 0:
        return "box outside the image"

    if max(-x, -y, x + width - size[0], y + height - size[1]) > TOLERANCE:
        return "box reaching out of the image"
    return None


def find_leaks(train: ValidationResult, val: ValidationResult) -> None:
    """Add to the problems of ``val`` its images that are in ``train`` too, byte for byte."""
    names = {file.digest: entry["file_name"] for entry, file in train.images()}
    for entry, file in val.images():
        if file.digest and file.digest in names:
            description = f"{entry['file_name']} is {names[file.digest]} of {train.json_file}"
            val.problems["image in both sets"].append(description)
