"""Validation of a data set in COCO's format, which lists all of its problems at once.

Training stops at the first problem; validation reads every annotation and every image.
"""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from salience_detr.data.annotation_checks import (
    HARMLESS,
    Finding,
    describe_findings,
    make_table,
)
from salience_detr.data.classes import ClassList
from salience_detr.data.coco_format import (
    LISTS,
    Content,
    DatasetError,
    Entry,
    entry_fault,
    is_box,
    is_file,
    is_id,
    is_ignored,
    names_by_id,
    read_coco,
    repeated,
)
from salience_detr.data.depth import choose_from_files
from salience_detr.data.image_files import LocatedImages, describe_folder, locate_images
from salience_detr.data.images import UNREADABLE, ImageReadError, read_image
from salience_detr.data.preparation.files import map_files
from salience_detr.data.preparation.frames import Size, read_size
from salience_detr.data.preparation.normalization import certain_box, certain_entry, normalize
from salience_detr.data.split_classes import check_splits, describe_difference
from salience_detr.data.value_range import ValueRange

# Kinds of problems that training would stop at or get wrong ...
ERRORS = (
    "missing image", "unreadable image", "wrong size", "unusable entry", "duplicate image id",
    "duplicate annotation id", "duplicate category id", "malformed box", "box without area",
    "box outside the image", "unknown category", "unknown image", "nothing to train on",
    "image in both sets", "different categories in both sets", Finding.FRACTIONS.value,
    Finding.CORNERS.value,
)  # fmt: skip
# ... and kinds that may be intended.
WARNINGS = (
    "box reaching out of the image", "annotation id 0", "image without boxes",
    "category without boxes", "category name twice", "image of nearly one color",
    "image twice in the set", "fewer categories than to train on",
    "image found by the end of its name", Finding.SOME_FRACTIONS.value, Finding.TWICE.value,
    Finding.NO_BOXES.value, Finding.ZERO_AREA.value,
)  # fmt: skip
# ... and what needs no attention.
NOTES = tuple(kind.value for kind in HARMLESS)
# Kinds of errors that a repair may mend without loss.
NORMALIZED = ("unusable entry", "malformed box", "box without area")
# Rounding of annotation tools, in pixels.
TOLERANCE = 0.01
# Range of values, of 256, in which nothing can be seen.
FAINT = 16

# Size in which every box lies.
UNKNOWN_SIZE = (math.inf, math.inf)


@dataclass(frozen=True)
class ImageFile:
    """Content of an image file.

    Attributes:
        size: EXIF-corrected (width, height); ``UNKNOWN_SIZE`` if the file cannot be read.
        orientation: EXIF orientation.
        digest: SHA-256 of the file.
        is_faint: whether its pixels hardly differ.
        problem: reason why it cannot be read, or "".
    """

    size: Size = UNKNOWN_SIZE
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
        moved: path relative to the folder of the images, by file name, of those that lie elsewhere
            than their names say.
        problems: descriptions by kind (``ERRORS`` and ``WARNINGS``).
        notes: descriptions by kind (``NOTES``).
    """

    json_file: Path
    content: Content
    files: list[ImageFile]
    moved: dict[str, str] = field(default_factory=dict)
    problems: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    notes: dict[str, list[str]] = field(default_factory=dict)

    @property
    def num_errors(self) -> int:
        return sum(len(self.problems.get(kind, ())) for kind in ERRORS)

    def add(self, kind: str, description: str) -> None:
        """Add a problem of one of the kinds in ``ERRORS`` and ``WARNINGS``."""
        self.problems[kind].append(description)

    def usable(self, kind: str) -> list[Entry]:
        """Return the valid entries of a list, whatever sizes of images and boxes are."""
        return [entry for entry in self.content[kind] if is_usable(kind, entry)]

    def images(self) -> list[tuple[Entry, ImageFile]]:
        """Return the usable images, each with its file."""
        pairs = zip(self.content["images"], self.files, strict=True)
        return [(entry, file) for entry, file in pairs if is_usable("images", entry)]

    def values(self, kind: str, key: str) -> set[object]:
        """Return the values of a key in the usable entries of a list."""
        return {entry[key] for entry in self.usable(kind)}


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
    entries = [entry if isinstance(entry, dict) else {} for entry in content["images"]]
    names = [entry.get("file_name") for entry in entries]
    located = locate_images(image_root, [name for name in names if isinstance(name, str)])

    # Any image without a usable name is missing, and its entry is reported.
    paths = [located.paths[name] if isinstance(name, str) else Path() for name in names]

    # Deep images are read as training reads them.
    value_range = ValueRange()
    choose_from_files(value_range, [str(path) for path in paths])
    read = partial(read_file, value_range=value_range)
    files = map_files(read, paths, workers, "images")
    result = ValidationResult(json_file, content, files, located.moved)

    check_entries(result)
    check_categories(result)
    check_images(result, located, image_root)
    check_boxes(result)
    check_all_boxes(result)
    return result


def read_file(path: Path, value_range: ValueRange) -> ImageFile:
    """Read an image as training does."""
    if not is_file(path):
        return ImageFile(problem="missing")

    try:
        pixels = read_image(str(path), value_range=value_range)
        size, orientation = read_size(path)
    except ImageReadError as error:
        return ImageFile(problem=str(error))
    except UNREADABLE as error:
        return ImageFile(problem=f"{path}: {error or type(error).__name__}")

    # Digests of files find images that are twice in a set, or in both sets.
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    is_faint = int(pixels.max()) - int(pixels.min()) < FAINT
    return ImageFile(size, orientation, digest, is_faint)


def check_entries(result: ValidationResult) -> None:
    """Find entries that are invalid by themselves, and ids that are repeated or of mixed types."""
    singular = {"images": "image", "categories": "category", "annotations": "annotation"}
    for kind in LISTS:
        ids = []
        for number, entry in enumerate(result.content[kind]):
            problem = entry_fault(kind, entry, without=("bbox",))
            if problem is not None:
                repaired = certain_entry(kind, entry)
                is_certain = entry_fault(kind, repaired, without=("bbox",)) is None
                remedy = "; --fix makes it one" if is_certain else ""
                result.add("unusable entry", f"number {number} of {kind} {problem}{remedy}")
            if isinstance(entry, dict) and is_id(entry.get("id")):
                ids.append(entry["id"])

        for entry_id, count in repeated(ids).items():
            result.add(f"duplicate {singular[kind]} id", f"{entry_id!r}, {count} times")
        if kind == "images" and len(set(map(type, ids))) > 1:
            result.add("unusable entry", "some image ids are numbers and others are texts")

    for kind in ("images", "categories"):
        if not result.usable(kind):
            result.add("nothing to train on", f"there are no {kind}")


def check_categories(result: ValidationResult) -> None:
    """Find categories without boxes, and names of several categories."""
    categories = result.usable("categories")
    with_boxes = result.values("annotations", "category_id")
    for category in categories:
        if category["id"] not in with_boxes:
            result.add("category without boxes", f"{category['name']} (id {category['id']})")

    for name in repeated(category["name"] for category in categories):
        ids = ", ".join(str(x["id"]) for x in categories if x["name"] == name)
        result.add("category name twice", f"{name} (ids {ids}); give one another name")


def check_images(result: ValidationResult, located: LocatedImages, image_root: Path) -> None:
    """Find images that are missing, unreadable, repeated, empty, or of another size."""
    with_boxes = result.values("annotations", "image_id")
    first_names: dict[str, str] = {}
    for entry, file in result.images():
        name = entry["file_name"]
        if file.problem == "missing":
            remark = located.missing.get(name)
            result.add("missing image", f"{name}: {remark}" if remark else name)
            continue
        if file.problem:
            result.add("unreadable image", file.problem)
            continue
        if name in located.moved:
            result.add("image found by the end of its name", f"{name} is {located.moved[name]}")

        frame = box_frame(entry, file)
        if frame != file.size:
            sizes = "{}x{}, the file says {}x{}".format(*file.size, *frame)
            result.add("wrong size", f"{name} is {sizes}")

        if entry["id"] not in with_boxes:
            result.add("image without boxes", name)
        if file.is_faint:
            remedy = "if it shows something, set dataloader.train.mapper.value_range"
            result.add("image of nearly one color", f"{name}; {remedy}")

        if file.digest in first_names:
            original = first_names[file.digest]
            result.add("image twice in the set", f"{name} is the same as {original}")
        first_names.setdefault(file.digest, name)

    if result.problems.get("missing image"):
        result.problems["missing image"][0] += f" ({describe_folder(image_root)})"


def check_boxes(result: ValidationResult) -> None:
    """Find annotations of unknown images or categories, and boxes that are not inside of images."""
    frames: dict[object, Size] = {}
    names: dict[object, str] = {}
    for entry, file in result.images():
        frames.setdefault(entry["id"], box_frame(entry, file))
        names.setdefault(entry["id"], f", {entry['file_name']}")

    category_ids = result.values("categories", "id")
    for annotation in result.usable("annotations"):
        image_id = annotation["image_id"]
        category_id = annotation["category_id"]
        where = f"annotation {annotation['id']} (image {image_id}{names.get(image_id, '')})"

        # COCO's evaluation takes a match with id 0 for none.
        if annotation["id"] == 0:
            effect = "other programs' evaluation would never count it as found"
            result.add("annotation id 0", f"{where}: {effect}")
        if category_id not in category_ids:
            result.add("unknown category", f"{where} has the category id {category_id}")
        if image_id not in frames:
            result.add("unknown image", f"{where}: there is no image {image_id!r}")

        box = annotation.get("bbox")
        width, height = frames.get(image_id, UNKNOWN_SIZE)
        kind = check_box(box, (width, height))
        if kind is not None:
            sizes = f"{box!r:.80} in an image of {width}x{height}"
            repaired = certain_box(annotation)
            remedy = f"; --fix makes it {repaired}" if repaired != box else ""
            result.add(kind, f"{where} has the bbox {sizes}{remedy}")


def check_all_boxes(result: ValidationResult) -> None:
    """Find what is wrong with the boxes as a whole, such as corners in place of sides.

    Numbers that are texts count as numbers, so that a repair does not hide what they mean.
    """
    if any(kind in result.problems for kind in NORMALIZED):
        normalized, _ = normalize(result.content)
        result = replace(result, content=normalized)
    usable = [x for x in result.usable("annotations") if is_box(x.get("bbox"))]
    frames = {entry["id"]: box_frame(entry, file) for entry, file in result.images()}

    found = describe_findings(make_table(usable, frames), usable)
    for kind, lines in found.items():
        if kind in HARMLESS:
            result.notes[kind.value] = lines
        else:
            result.problems[kind.value] += lines

    if not result.content["annotations"]:
        result.add(Finding.NO_BOXES.value, "there are no annotations")
    elif usable and all(map(is_ignored, usable)):
        result.add(Finding.NO_BOXES.value, f"all {len(usable)} boxes are crowd regions or ignored")


def box_frame(entry: Entry, file: ImageFile) -> Size:
    """Return the (width, height) of the frame in which the boxes of an image were drawn.

    It is the annotated size or, where there is none, that of the image.
    """
    if entry_fault("images", entry) is None:
        return entry["width"], entry["height"]
    return file.size


def check_box(box: object, size: Size) -> str | None:
    """Return the kind of problem of an (x, y, width, height) box in an image of (width, height)."""
    if not is_box(box):
        return "malformed box"

    x, y, width, height = box
    image_width, image_height = size
    if width <= 0 or height <= 0:
        return "box without area"
    if x >= image_width or y >= image_height or x + width <= 0 or y + height <= 0:
        return "box outside the image"
    if max(-x, -y, x + width - image_width, y + height - image_height) > TOLERANCE:
        return "box reaching out of the image"
    return None


def compare_categories(train: ValidationResult, val: ValidationResult) -> None:
    """Add to the problems of ``val`` categories with which training would stop."""
    train_classes = classes_of(train)
    val_classes = classes_of(val)
    try:
        check_splits(train_classes, val_classes)
    except DatasetError as error:
        val.add("different categories in both sets", str(error))
        return

    difference = describe_difference(train_classes.names, val_classes)
    if difference is not None:
        val.add("fewer categories than to train on", difference)


def classes_of(result: ValidationResult) -> ClassList:
    """Return the usable categories as classes."""
    name_of = names_by_id(result.usable("categories"))
    return ClassList.from_categories(name_of, str(result.json_file))


def find_leaks(train: ValidationResult, val: ValidationResult) -> None:
    """Add to the problems of ``val`` its images that are in ``train`` too, byte for byte."""
    names = {file.digest: entry["file_name"] for entry, file in train.images()}
    for entry, file in val.images():
        # Files that cannot be read have no digest.
        if file.digest and file.digest in names:
            original = f"{names[file.digest]} of {train.json_file}"
            val.add("image in both sets", f"{entry['file_name']} is {original}")
