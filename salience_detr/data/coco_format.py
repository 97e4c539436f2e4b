"""Annotation files in COCO's format: reading them, and what their entries must be."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

LISTS = ("images", "annotations", "categories")
# Beyond it a number is a mistake, and products of two overflow nowhere.
LARGEST = 1e9


class DatasetError(ValueError):
    """A data set that cannot be used as it is."""


# Contents that wait for their next reader, with size and time of change of their files.
_kept: dict[Path, tuple[tuple[int, int], dict[str, Any]]] = {}


def read_json(path: Path, *, keep: bool = False) -> dict[str, Any]:
    """Return the content of an annotation file.

    Several steps need the same file before training begins, and COCO's has 450 MB: with ``keep`` the
    process keeps the content for the next reader, and the caller must not change it. Without, the
    content is the caller's alone, and its memory is free when the caller is done with it.

    Raises:
        DatasetError: the file is not valid JSON, or not an object.
    """
    path = path.absolute()
    try:
        status = path.stat()
        stamp = (status.st_size, status.st_mtime_ns)
        kept_stamp, content = _kept.pop(path, (None, {}))

        if kept_stamp != stamp:
            content = json.loads(path.read_text(encoding="utf-8"))
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


def read_coco(path: Path, *, keep: bool = False) -> dict[str, Any]:
    """Return the content of a file with COCO's three lists, whose entries are not yet checked.

    Raises:
        DatasetError: the file is missing, not valid JSON, or lacks a list.
    """
    if not path.is_file():
        raise DatasetError(f"there is no annotation file {path}")

    content = read_json(path, keep=keep)
    for key in LISTS:
        if not isinstance(content.get(key), list):
            raise DatasetError(
                f"{path} has no list {key!r}; COCO's format needs {', '.join(LISTS)}"
            )
    return content


def is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63


def is_number(value: Any) -> bool:
    """Whether a value is a finite number of a size that occurs."""
    return (
        isinstance(value, (int, float))
        and not isinstance(value, bool)
        and -LARGEST < value < LARGEST
    )


def is_side(value: Any) -> bool:
    return is_number(value) and value > 0 and value == int(value)


def is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def is_id(value: Any) -> bool:
    return is_whole(value) or is_text(value)


def is_flag(value: Any) -> bool:
    return value is None or value in (0, 1)


# Of each list: the keys that an entry must have, and the ones that it may have; what they hold, in words.
Rules = dict[str, tuple[Callable[[Any], bool], str]]
REQUIRED: dict[str, Rules] = {
    "images": {
        "id": (is_id, "a whole number or a text"),
        "file_name": (is_text, "the name of a file"),
        "height": (is_side, "a positive whole number"),
        "width": (is_side, "a positive whole number"),
    },
    "categories": {"id": (is_whole, "a whole number"), "name": (is_text, "a name")},
    "annotations": {
        "id": (is_id, "a whole number or a text"),
        "image_id": (is_id, "a whole number or a text"),
        "category_id": (is_whole, "a whole number"),
        "bbox": (lambda value: True, ""),  # see box_fault
    },
}
OPTIONAL: dict[str, Rules] = {
    "images": {},
    "categories": {},
    "annotations": {
        "iscrowd": (is_flag, "0 or 1"),
        "ignore": (is_flag, "0 or 1"),
        "area": (lambda value: value is None or is_number(value), "a number"),
    },
}


def entry_fault(kind: str, entry: Any, *, without: Iterable[str] = ()) -> str | None:
    """What is wrong with an entry of one of the lists by itself, in words that follow "the entry ..."; else None.

    Args:
        kind: "images", "annotations" or "categories".
        entry: as it is in the file.
        without: keys that do not matter.
    """
    if not isinstance(entry, dict):
        return f"is {entry!r:.80}, not an object"
    for key, (fits, words) in REQUIRED[kind].items():
        if key in without:
            continue
        if key not in entry:
            return f"has no {key!r}"
        if not fits(entry[key]):
            return f"has the {key} {entry[key]!r:.80}, not {words}"
    for key, (fits, words) in OPTIONAL[kind].items():
        if key not in without and not fits(entry.get(key)):
            return f"has the {key} {entry[key]!r:.80}, not {words}"
    return None


def box_fault(box: Any) -> str | None:
    """Why a value is no (x, y, width, height) box, in words that follow "annotation ..."; else None."""
    if not isinstance(box, list) or len(box) != 4:
        found = f"of {len(box)} numbers" if isinstance(box, list) else repr(box)
        return f"has a bbox {found:.80}, not (x, y, width, height)"
    if not all(is_number(value) for value in box):
        return f"has the bbox {box!r:.120}, which are not four numbers"
    return None


def first_fault(content: dict[str, list[Any]], path: Path) -> str | None:
    """The first entry of a COCO file that is wrong, or does not fit to the others, in words."""
    for kind in LISTS:
        for number, entry in enumerate(content[kind]):
            fault = entry_fault(kind, entry)
            if fault is not None:
                which = (
                    f"id {entry['id']}"
                    if isinstance(entry, dict) and "id" in entry
                    else f"number {number}"
                )
                return f"the entry {which} of {kind!r} in {path} {fault}"
        counts = Counter(entry["id"] for entry in content[kind])
        repeated = [entry_id for entry_id, count in counts.items() if count > 1]
        if repeated:
            return f"{path} has several {kind} with id {repeated[0]!r}; ids must be unique"
    if not content["categories"]:
        return f"{path} has no categories"
    image_ids, category_ids = (
        {entry["id"] for entry in content[kind]} for kind in ("images", "categories")
    )
    if len({type(image_id) for image_id in image_ids}) > 1:
        return (
            f"{path} has image ids that are numbers and others that are texts; make all of one kind"
        )
    for annotation in content["annotations"]:
        where = f"annotation {annotation['id']} in {path}"
        if annotation["category_id"] not in category_ids:
            return (
                f"{where} (image {annotation['image_id']}) has the unknown category id {annotation['category_id']!r}; "
                f"categories are {sorted(category_ids)}"
            )
        if annotation["image_id"] not in image_ids:
            return f"{where} belongs to the unknown image id {annotation['image_id']!r}"
        fault = box_fault(annotation["bbox"])
        if fault is not None:
            return f"{where} {fault}"
    return None


def is_ignored(annotation: dict[str, Any]) -> bool:
    """Whether a box marks a region in which nothing is learned and no detection is wrong."""
    return bool(annotation.get("iscrowd") or annotation.get("ignore"))


def prepare_for_evaluation(annotations: list[dict[str, Any]]) -> None:
    """Complete annotations, in place, for COCO's evaluation; an index of them has to be made anew.

    It needs ``iscrowd`` and the box's ``area``, which many files leave out, and takes a match with an annotation of id
    0, which many exporters give, for none: then the ids are given anew.
    """
    for annotation in annotations:
        annotation["iscrowd"] = int(is_ignored(annotation))
        if annotation.get("area") is None:
            annotation["area"] = annotation["bbox"][2] * annotation["bbox"][3]
    if not all(is_whole(annotation["id"]) and annotation["id"] > 0 for annotation in annotations):
        for number, annotation in enumerate(annotations, 1):
            annotation["id"] = number


def image_path(image_root: Path, file_name: str) -> Path:
    """Where the image of an entry is; the separators may be those of Windows."""
    path = image_root / file_name
    if "\\" in file_name and not path.is_file():
        return image_root / file_name.replace("\\", "/")
    return path
