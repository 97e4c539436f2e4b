"""Annotation files in COCO's format: how they are read, and the rules for their entries."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, TypeGuard

from salience_detr.utils.files import parse_json

LISTS = ("images", "annotations", "categories")
# A larger number is a mistake; products of two smaller ones overflow nowhere.
LARGEST = 1e9

Content: TypeAlias = dict[str, Any]  # an annotation file's
Entry: TypeAlias = dict[str, Any]  # an image, an annotation or a category of it
Record: TypeAlias = dict[str, Any]  # an image, or an annotation of one, in detectron2's format


class DatasetError(ValueError):
    """A data set that cannot be used as it is."""


# Contents that wait for their next reader, with size and time of change of their files.
_kept: dict[Path, tuple[tuple[int, int], Content]] = {}


def read_json(path: Path, *, keep: bool = False) -> Content:
    """Return the content of an annotation file.

    Several steps read the same file before training begins, and COCO's has 450 MB. With ``keep``,
    the content is kept for the next reader, and the caller must not change it. Without, it is the
    caller's alone, and its memory is free when the caller is done with it.

    Raises:
        DatasetError: the file is not valid JSON, or not an object.
    """
    path = path.absolute()
    try:
        status = path.stat()
        stamp = (status.st_size, status.st_mtime_ns)
        kept_stamp, content = _kept.pop(path, (None, {}))

        # The file may have been written anew since it was read.
        if kept_stamp != stamp:
            content = parse_json(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise DatasetError(f"{path} is not encoded in UTF-8 ({error}); save it as UTF-8") from error
    except (OSError, ValueError) as error:
        is_marked = "BOM" in str(error)
        remedy = "save it without a byte order mark" if is_marked else "it may be truncated"
        raise DatasetError(f"{path} is not valid JSON ({error}); {remedy}") from error

    if not isinstance(content, dict):
        kind = type(content).__name__
        raise DatasetError(f"{path} holds a {kind}, not an object with {', '.join(LISTS)}")
    if keep:
        _kept[path] = (stamp, content)
    return content


def read_coco(path: Path, *, keep: bool = False, lists: Sequence[str] = LISTS) -> Content:
    """Return the content of a file with COCO's three lists, whose entries are not yet checked.

    Args:
        path: of the file.
        keep: see :func:`read_json`.
        lists: those that it must have; COCO's test sets have no annotations.

    Raises:
        DatasetError: the file is missing, not valid JSON, or lacks a list.
    """
    if not path.is_file():
        raise DatasetError(f"there is no annotation file {path}")

    content = read_json(path, keep=keep)
    for key in LISTS:
        if key not in lists and key not in content:
            continue
        if not isinstance(content.get(key), list):
            raise DatasetError(
                f"{path} has no list {key!r}; COCO's format needs {', '.join(LISTS)}"
            )
    return content


def is_whole(value: object) -> bool:
    """Return whether a value is a 64-bit integer; True and False are not."""
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63


def is_number(value: object) -> TypeGuard[float]:
    """Return whether a value is a finite number, smaller than :data:`LARGEST`."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return -LARGEST < value < LARGEST


def is_side(value: object) -> bool:
    return is_number(value) and value > 0 and value == int(value)


def is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


def is_id(value: object) -> bool:
    return is_whole(value) or is_text(value)


def is_box(value: object) -> TypeGuard[list[float]]:
    return isinstance(value, list) and len(value) == 4 and all(map(is_number, value))


def is_extent(value: object) -> bool:
    """Return whether a value is a box of a detection, whose sides may be 0, but not negative."""
    return is_box(value) and min(value[2:]) >= 0


class Rule(NamedTuple):
    """A check of the value of a key, and a description of valid values."""

    is_valid: Callable[[object], bool]
    description: str


WHOLE = Rule(is_whole, "a whole number")
ID = Rule(is_id, "a whole number or a text")
FILE_NAME = Rule(is_text, "the name of a file")
SIDE = Rule(is_side, "a positive whole number")
BOX = Rule(is_box, "four numbers (x, y, width, height)")
EXTENT = Rule(is_extent, "four numbers (x, y, width, height), no side of them negative")
NUMBER = Rule(is_number, "a number")
AREA = Rule(lambda value: value is None or is_number(value), "a number")
FLAG = Rule(lambda value: value in (None, 0, 1), "0 or 1")
NAME = Rule(is_text, "a name")

# Keys that the entries of each list must have, and those that annotations may have.
REQUIRED = {
    "images": {"id": ID, "file_name": FILE_NAME, "height": SIDE, "width": SIDE},
    "annotations": {"id": ID, "image_id": ID, "category_id": WHOLE, "bbox": BOX},
    "categories": {"id": WHOLE, "name": NAME},
    "detections": {"image_id": ID, "category_id": ID, "bbox": EXTENT, "score": NUMBER},
}
OPTIONAL = {"iscrowd": FLAG, "ignore": FLAG, "area": AREA}


def entry_fault(kind: str, entry: object, *, without: Iterable[str] = ()) -> str | None:
    """Find what is wrong with an entry by itself.

    Args:
        kind: "images", "annotations", "categories" or "detections".
        entry: as it is in the file.
        without: keys that are not checked.

    Returns:
        Words that follow "the entry ...", such as "has no 'id'", or None for a valid entry.
    """
    if not isinstance(entry, dict):
        return f"is {entry!r:.80}, not an object"

    optional = OPTIONAL if kind == "annotations" else {}
    for key, rule in (REQUIRED[kind] | optional).items():
        if key in without:
            continue
        if key in REQUIRED[kind] and key not in entry:
            return f"has no {key!r}"
        if not rule.is_valid(entry.get(key)):
            return f"has the {key} {entry[key]!r:.120}, not {rule.description}"
    return None


def repeated(values: Iterable[Hashable]) -> dict[Hashable, int]:
    """Count the values that occur more than once."""
    return {value: count for value, count in Counter(values).items() if count > 1}


def distinct_names(categories: Sequence[Entry]) -> list[str]:
    """Return the name of each category; a name that several have is followed by the id of each.

    Two categories called "nick", of the ids 2 and 3, become "nick (id 2)" and "nick (id 3)", so
    that tables, metrics and checkpoints keep them apart.
    """
    keys = [(category["id"], category["name"]) for category in categories]
    names = {key: key[1] for key in keys}

    # A name with an id may be another category's own name.
    while twice := repeated(names.values()):
        for key, name in names.items():
            if name in twice:
                names[key] = f"{name} (id {key[0]})"
    return [names[key] for key in keys]


def names_by_id(categories: Sequence[Entry]) -> dict[int, str]:
    """Return the name of each category by its id, see :func:`distinct_names`."""
    ids = [category["id"] for category in categories]
    return dict(zip(ids, distinct_names(categories), strict=True))


def first_fault(content: Content, path: Path) -> str | None:
    """Find the first entry of a file that is wrong, or does not fit the others.

    Returns:
        A message without a remedy, or None for a valid file.
    """
    # References can only be checked between entries that are valid by themselves.
    for kind in LISTS:
        fault = list_fault(kind, content.get(kind, []), path)
        if fault is not None:
            return fault

    image_ids = {image["id"] for image in content["images"]}
    category_ids = {category["id"] for category in content["categories"]}
    if not category_ids:
        return f"{path} has no categories"
    # Records are sorted by these ids.
    if len(set(map(type, image_ids))) > 1:
        return (
            f"{path} has image ids that are numbers and others that are texts; make all of one kind"
        )

    for annotation in content.get("annotations", []):
        where = f"annotation {annotation['id']} in {path}"
        image_id = annotation["image_id"]
        category_id = annotation["category_id"]
        if category_id not in category_ids:
            known = sorted(category_ids)
            return (
                f"{where} (image {image_id}) has the unknown category id {category_id!r}; "
                f"categories are {known}"
            )
        if image_id not in image_ids:
            return f"{where} belongs to the unknown image id {image_id!r}"
    return None


def list_fault(kind: str, entries: list[Entry], path: Path) -> str | None:
    """Find the first entry of a list that is wrong by itself, or an id that is not unique."""
    for number, entry in enumerate(entries):
        fault = entry_fault(kind, entry)
        if fault is None:
            continue

        name = f"number {number}"
        if isinstance(entry, dict) and "id" in entry:
            name = f"id {entry['id']}"
        return f"the entry {name} of {kind!r} in {path} {fault}"

    for entry_id in repeated(entry["id"] for entry in entries):
        return f"{path} has several {kind} with id {entry_id!r}; ids must be unique"
    return None


def is_ignored(annotation: Entry) -> bool:
    """Return whether nothing is learned in a box, and no detection on it is wrong."""
    return bool(annotation.get("iscrowd") or annotation.get("ignore"))


def prepare_for_evaluation(annotations: list[Entry]) -> None:
    """Complete annotations for pycocotools, in place; its index of them must be made anew.

    pycocotools needs ``iscrowd`` and ``area``, which many files leave out. It takes a match with
    an annotation of id 0, which many exporters write, for no match: then all get new ids.
    """
    for annotation in annotations:
        annotation["iscrowd"] = int(is_ignored(annotation))
        annotation["area"] = area_of(annotation)

    number_annotations(annotations)


def area_of(annotation: Entry) -> float:
    """Return the area of a valid annotation; without a positive one, that of its box.

    Many files leave it out, and some exporters write 0 for all, which would make every box small.
    """
    area = annotation.get("area")
    if area is not None and area > 0:
        return area

    width, height = annotation["bbox"][2:]
    return max(width, 0) * max(height, 0)


def number_annotations(annotations: list[Entry]) -> bool:
    """Give new ids to all annotations, in place, if one is repeated or not a positive number.

    Returns:
        Whether they have new ids.
    """
    ids: list[Any] = [annotation.get("id") for annotation in annotations]
    if all(is_whole(x) and x > 0 for x in ids) and not repeated(ids):
        return False

    for number, annotation in enumerate(annotations, 1):
        annotation["id"] = number
    return True


def image_path(image_root: Path, file_name: str) -> Path:
    """Return the path of an image; its entry may have Windows' separators."""
    path = image_root / file_name
    # On Linux and macOS, a backslash may also be part of a name.
    if "\\" in file_name and not is_file(path):
        return image_root / file_name.replace("\\", "/")
    return path


def is_file(path: Path) -> bool:
    """Return whether there is a file; none has a name that the system does not allow."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False
