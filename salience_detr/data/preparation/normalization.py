"""Values of an annotation file that are certain, but not as COCO's format has them.

Numbers may be texts ("12.5") or have needless decimals (1.0), and an annotation may have a mask in
place of a box.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from salience_detr.data.coco_format import (
    LISTS,
    Content,
    Entry,
    is_box,
    is_id,
    is_number,
    is_side,
    is_whole,
    repeated,
)

NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
# More digits are no number that anything has.
LONGEST_NUMBER = 40
# A polygon has three corners at least.
SHORTEST_POLYGON = 6

Fix = Callable[[object], object]


def number_of(value: object) -> object:
    """Return the number that a text holds; any other value stays."""
    if not isinstance(value, str) or len(value) > LONGEST_NUMBER:
        return value

    text = value.strip()
    if not NUMBER.fullmatch(text):
        return value
    return int(text) if re.fullmatch(r"[+-]?\d+", text) else float(text)


def whole_of(value: object) -> object:
    """Return the whole number that a text or a number with decimals stands for, else the value."""
    number = number_of(value)
    if isinstance(number, float) and is_number(number) and number == int(number):
        return int(number)
    return number if is_whole(number) else value


def side_of(value: object) -> object:
    """Return the side of an image that a text stands for."""
    return value if is_side(value) else whole_of(value)


def box_of(value: object) -> object:
    """Return the box whose numbers are texts, or that is one text of four numbers."""
    if isinstance(value, str):
        value = re.split(r"[,;\s]+", value.strip().strip("[]()").strip())
    if not isinstance(value, list) or len(value) != 4:
        return value
    return [number_of(number) for number in value]


def image_id_of(value: object) -> object:
    """Return an id without needless decimals; a text may be an id."""
    return value if isinstance(value, str) else whole_of(value)


IMAGE: dict[str, Fix] = {"id": image_id_of, "width": side_of, "height": side_of}
CATEGORY: dict[str, Fix] = {"id": whole_of}
ANNOTATION: dict[str, Fix] = {
    "id": whole_of,
    "image_id": image_id_of,
    "category_id": whole_of,
    "bbox": box_of,
    "area": number_of,
    "iscrowd": whole_of,
    "ignore": whole_of,
}


FIXES = {"images": IMAGE, "categories": CATEGORY, "annotations": ANNOTATION}


def normalize(content: Content) -> tuple[Content, Counter[str]]:
    """Return a copy of a COCO file with the values that are certain, and the numbers of changes.

    Args:
        content: with the three lists, whose entries may be anything. Lists and entries that change
            are copied.
    """
    changes: Counter[str] = Counter()
    lists: dict[str, list[Any]] = {kind: [] for kind in LISTS}
    for kind, entries in lists.items():
        for entry in content[kind]:
            fixed = certain_entry(kind, entry)
            entries.append(fixed)
            changes["entries with values made numbers"] += fixed is not entry

    unify_image_ids(lists, changes)
    lists["annotations"] = [add_box(entry, changes) for entry in lists["annotations"]]
    return {**content, **lists}, changes


def certain_entry(kind: str, entry: Any) -> Any:
    """Return an entry of a list with its certain values: a copy, or itself if none has changed."""
    if not isinstance(entry, dict):
        return entry

    fixed = dict(entry)
    for key, fix in FIXES[kind].items():
        if key in entry:
            fixed[key] = fix(entry[key])

    # 1 and 1.0 are equal, but not of one type.
    return entry if repr(fixed) == repr(entry) else fixed


def unify_image_ids(lists: dict[str, list[Any]], changes: Counter[str]) -> None:
    """Give images ids of one type, and annotations the ids of their images, in place."""
    images = lists["images"]
    ids = [x["id"] for x in images if isinstance(x, dict) and is_id(x.get("id"))]
    new_ids: dict[object, object] = {image_id: image_id for image_id in ids}
    if len(set(map(type, ids))) > 1:
        new_ids = ids_of_one_type(new_ids)

    # An annotation may have the number of an id that is a text, and the other way round.
    by_number = {image_id: whole_of(image_id) for image_id in new_ids}
    unclear = repeated(by_number.values())
    alike = {number: x for x, number in by_number.items() if number not in unclear}

    for place, image in enumerate(images):
        image_id = image.get("id") if isinstance(image, dict) else None
        if is_id(image_id) and new_ids[image_id] != image_id:
            images[place] = {**image, "id": new_ids[image_id]}
            changes["image ids made of one type"] += 1

    annotations = lists["annotations"]
    for place, annotation in enumerate(annotations):
        image_id = annotation.get("image_id") if isinstance(annotation, dict) else None
        if not is_id(image_id):
            continue
        known = image_id if image_id in new_ids else alike.get(whole_of(image_id), image_id)
        wanted = new_ids.get(known, image_id)
        if wanted != image_id:
            annotations[place] = {**annotation, "image_id": wanted}
            changes["image ids of boxes made those of the images"] += 1


def ids_of_one_type(ids: Iterable[object]) -> dict[object, object]:
    """Return new ids, numbers if all can be, else texts; the old ones if two became the same."""
    old_ids = list(ids)
    numbers = {old: whole_of(old) for old in old_ids}
    texts: dict[object, object] = {old: str(old) for old in old_ids}

    for new_ids in (numbers, texts):
        is_uniform = len(set(map(type, new_ids.values()))) == 1
        if is_uniform and len(set(new_ids.values())) == len(old_ids):
            return new_ids
    return {old: old for old in old_ids}


def add_box(annotation: object, changes: Counter[str]) -> object:
    """Return an annotation with the extent of its mask as box, if it has no box with an area."""
    if not isinstance(annotation, dict):
        return annotation

    box = certain_box(annotation)
    if box == annotation.get("bbox"):
        return annotation
    changes["boxes made of masks"] += 1
    return {**annotation, "bbox": box}


def certain_box(annotation: Entry) -> object:
    """Return the box of an annotation, as numbers, or if it has no area the extent of its mask."""
    box = box_of(annotation.get("bbox"))
    if is_box(box) and min(box[2:]) > 0:
        return box

    extent = mask_extent(annotation.get("segmentation"))
    return annotation.get("bbox") if extent is None else extent


def mask_extent(segmentation: Any) -> list[float] | None:
    """Return the (x, y, width, height) extent of polygons or of a run-length code, if it has any.

    Args:
        segmentation: as in COCO's format; texts may stand for numbers.
    """
    if isinstance(segmentation, dict):
        return run_length_extent(segmentation)
    if not isinstance(segmentation, list):
        return None

    is_nested = all(isinstance(part, list) for part in segmentation)
    polygons = segmentation if is_nested else [segmentation]
    points: list[tuple[float, float]] = []
    for polygon in polygons:
        numbers: list[Any] = [number_of(number) for number in polygon]
        is_polygon = len(numbers) >= SHORTEST_POLYGON and len(numbers) % 2 == 0
        if is_polygon and all(map(is_number, numbers)):
            points += list(zip(numbers[::2], numbers[1::2], strict=True))
    if not points:
        return None

    x0, y0 = np.min(points, axis=0).tolist()
    x1, y1 = np.max(points, axis=0).tolist()
    return [x0, y0, x1 - x0, y1 - y0] if x1 > x0 and y1 > y0 else None


def run_length_extent(code: Entry) -> list[float] | None:
    """Return the extent of COCO's run-length code: runs of 0 and 1 in turn, column by column.

    pycocotools is not used: it may crash at a broken code.
    """
    size = code.get("size")
    if not isinstance(size, list) or len(size) != 2 or not all(map(is_side, size)):
        return None

    counts = code.get("counts")
    runs = decode_runs(counts) if isinstance(counts, str) else counts
    if not isinstance(runs, list) or not all(is_whole(x) and 0 <= x < 2**31 for x in runs):
        return None

    height, width = (int(side) for side in size)
    ends = np.cumsum([0, *runs], dtype=np.int64)
    starts = ends[1:-1:2]
    stops = ends[2::2]
    is_run = stops > starts
    starts = starts[is_run]
    lasts = stops[is_run] - 1
    if not len(starts) or lasts[-1] >= height * width:
        return None

    # A run into the next column touches the lower and the upper edge.
    x0 = starts[0] // height
    x1 = lasts[-1] // height + 1
    is_wrapped = (starts // height != lasts // height).any()
    y0 = 0 if is_wrapped else (starts % height).min()
    y1 = height if is_wrapped else (lasts % height).max() + 1
    return [float(x0), float(y0), float(x1 - x0), float(y1 - y0)]


def decode_runs(text: str) -> list[int] | None:
    """Decode a compressed run-length code: differences to the last but one run, 5 bits a letter."""
    runs: list[int] = []
    value = 0
    shift = 0
    for letter in text:
        bits = ord(letter) - 48
        if not 0 <= bits < 64 or shift > 60:
            return None

        value |= (bits & 0x1F) << shift
        shift += 5
        if bits & 0x20:
            continue

        # The highest bit of the last letter is the sign.
        if bits & 0x10:
            value -= 1 << shift
        runs.append(value + runs[-2] if len(runs) > 2 else value)
        value = 0
        shift = 0
    return runs if shift == 0 else None
