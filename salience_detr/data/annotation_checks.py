"""Checks of all boxes of an annotation file together: do they mean what COCO's format says?

Each entry may be valid by itself where the file as a whole is not: boxes in fractions of the image,
corners in place of sides, every box twice, no area. Training would go on with wrong results.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from itertools import chain
from pathlib import Path

import numpy as np

from salience_detr.data.coco_format import Content, Entry, is_ignored

# Rounding of annotation tools in fractions, and in pixels of corners.
FRACTION_TOLERANCE = 0.01
CORNER_TOLERANCE = 1.0
# The part of the boxes that are corners if the boxes of a file are; others may be mistakes.
CORNER_SHARE = 0.9
# A few boxes may reach out of their image by chance.
FEWEST_CORNERS = 3
# Where every one of so many boxes could be corners, this part need not fit otherwise.
MANY = 10
MISFIT_SHARE = 0.2
# The largest difference of the numbers of two boxes that are the same, in pixels.
SAME = 1e-3 + 1e-6


class Finding(Enum):
    """Kinds of findings; the values are the names under which check_dataset.py lists them."""

    FRACTIONS = "boxes in fractions of the image"
    SOME_FRACTIONS = "box in fractions of the image"
    CORNERS = "corners in place of x, y, width, height"
    TWICE = "box twice in an image"
    NO_BOXES = "no box to learn"
    ZERO_AREA = "area 0"
    NO_AREA = "no area"


# Findings that leave nothing right to learn from or to evaluate on.
FATAL = (Finding.FRACTIONS,)
# Findings that need no attention: results are right.
HARMLESS = (Finding.NO_AREA,)


@dataclass(frozen=True)
class BoxTable:
    """Boxes of an annotation file as arrays; N is their number.

    Attributes:
        boxes: (N, 4) x, y, width, height.
        sizes: (N, 2) width and height of the image of each; inf if they are unknown.
        groups: (N,) int, equal for boxes of one image and class that are both crowds or not.
        areas: (N,) annotated areas; NaN for none.
        ignored: (N,) bool, True for crowd regions.
    """

    boxes: np.ndarray
    sizes: np.ndarray
    groups: np.ndarray
    areas: np.ndarray
    ignored: np.ndarray

    @property
    def has_extent(self) -> np.ndarray:
        """Return (N,) bool, True for boxes with an area."""
        return np.all(self.boxes[:, 2:] > 0, axis=1)


def make_table(
    annotations: list[Entry], sizes: Mapping[object, tuple[float, float]] | None = None
) -> BoxTable:
    """Return the boxes of valid annotations.

    Args:
        annotations: valid entries of a file.
        sizes: (width, height) by image id; unknown if it is missing.
    """
    count = len(annotations)
    numbers = chain.from_iterable(annotation["bbox"] for annotation in annotations)
    boxes = np.fromiter(numbers, np.float64, 4 * count).reshape(-1, 4)

    unknown = (np.inf, np.inf)
    known = sizes or {}
    sides = chain.from_iterable(known.get(x["image_id"], unknown) for x in annotations)
    image_sizes = np.fromiter(sides, np.float64, 2 * count).reshape(-1, 2)

    areas = (x.get("area") for x in annotations)
    ignored = np.fromiter(map(is_ignored, annotations), bool, count)
    return BoxTable(
        boxes=boxes,
        sizes=image_sizes,
        groups=number_groups(map(group_of, annotations)),
        areas=np.fromiter((np.nan if x is None else x for x in areas), np.float64, count),
        ignored=ignored,
    )


def group_of(annotation: Entry) -> tuple[Hashable, Hashable, bool]:
    """Return what boxes have in common that may be the same: image, category, and being a crowd."""
    return annotation["image_id"], annotation["category_id"], is_ignored(annotation)


def number_groups(keys: Iterable[Hashable]) -> np.ndarray:
    """Return a number for each key, the same one for equal keys."""
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(key, len(numbers)) for key in keys], dtype=np.int64)


def find_fractions(table: BoxTable) -> np.ndarray:
    """Return (N,) bool, True for boxes whose numbers lie in [0, 1], unlike the image's sides."""
    in_unit = (table.boxes > -FRACTION_TOLERANCE) & (table.boxes < 1 + FRACTION_TOLERANCE)
    return in_unit.all(axis=1) & table.has_extent & (table.sizes > 2).all(axis=1)


def find_corners(table: BoxTable) -> tuple[np.ndarray, np.ndarray]:
    """Return (N,) bool, True for boxes that fit into the image as x0, y0, x1, y1.

    Returns:
        All of them, and those of them that do not fit as x, y, width, height.
    """
    start = table.boxes[:, :2]
    last = table.boxes[:, 2:]
    limits = table.sizes + CORNER_TOLERANCE

    as_corners = (start >= -CORNER_TOLERANCE) & (last > start) & (last <= limits)
    reaches_out = (start + last > limits).any(axis=1)
    fits = as_corners.all(axis=1) & np.isfinite(table.sizes).all(axis=1)
    return fits, fits & reaches_out


def find_duplicates(table: BoxTable) -> dict[int, int]:
    """Find the boxes that are in the file before, in the same image and of the same class.

    Boxes without area are not looked at.

    Returns:
        The row of the earlier box by the row of the later one.
    """
    # In each group the same boxes are neighbors in the order of x, up to rounding.
    order = np.lexsort((table.boxes[:, 0], table.groups))
    order = order[table.has_extent[order]]
    boxes = table.boxes[order]
    groups = table.groups[order]

    originals: dict[int, int] = {}
    is_repeated = np.zeros(len(table.boxes), dtype=bool)
    firsts = np.arange(len(order))
    distance = 0
    while len(firsts):
        distance += 1
        firsts = firsts[firsts + distance < len(order)]
        others = firsts + distance
        near = (groups[others] == groups[firsts]) & (boxes[others, 0] - boxes[firsts, 0] <= SAME)
        firsts = firsts[near]
        others = others[near]

        same = (np.abs(boxes[others] - boxes[firsts]) <= SAME).all(axis=1)
        pairs = np.sort(np.stack([order[firsts[same]], order[others[same]]], axis=1), axis=1)
        for earlier, later in pairs.tolist():
            originals.setdefault(later, earlier)

        # What equals an earlier box need not be compared with the ones after it.
        is_repeated[pairs[:, 1]] = True
        firsts = firsts[~is_repeated[order[firsts]]]
    return originals


def describe_findings(table: BoxTable, annotations: list[Entry]) -> dict[Finding, list[str]]:
    """Return what is suspicious about the boxes of a file: a line, or one for each box.

    Args:
        table: made from the annotations.
        annotations: for examples in the lines.
    """
    found: dict[Finding, list[str]] = {}
    count = len(annotations)
    num_with_extent = int(table.has_extent.sum())

    def example(rows: np.ndarray) -> str:
        row = int(np.flatnonzero(rows)[0])
        size = "x".join(f"{side:g}" for side in table.sizes[row])
        entry = annotations[row]
        return f"{entry['bbox']!r:.80} of annotation {entry['id']} in an image of {size}"

    fractions = find_fractions(table)
    num_fractions = int(fractions.sum())
    if num_fractions:
        is_most = 2 * num_fractions >= num_with_extent
        line = (
            f"{num_fractions} of {count} boxes lie within the first pixel of their image, like "
            f"fractions of its sides: {example(fractions)}; bbox holds pixels: multiply x and "
            "width by the image's width, y and height by its height"
        )
        found[Finding.FRACTIONS if is_most else Finding.SOME_FRACTIONS] = [line]

    as_corners, corners_only = find_corners(table)
    num_corners = int(corners_only.sum())
    if Finding.FRACTIONS not in found and are_corners(as_corners, corners_only, num_with_extent):
        found[Finding.CORNERS] = [
            f"{num_corners} of {count} boxes fit into their image as corners x0, y0, x1, y1, but "
            f"not as x, y, width, height: {example(corners_only)}; bbox holds width and height: "
            "write x1 - x0 and y1 - y0 in place of x1 and y1"
        ]

    duplicates = find_duplicates(table)
    lines = []
    for later, earlier in sorted(duplicates.items()):
        entry = annotations[later]
        lines.append(
            f"annotation {entry['id']} (image {entry['image_id']}) is annotation "
            f"{annotations[earlier]['id']} again: {entry['bbox']!r:.80}"
        )
    if lines:
        found[Finding.TWICE] = lines

    effect = (
        "they count as small, medium or large by width x height; tools/check_dataset.py --fix "
        "writes it"
    )
    zero = (table.areas <= 0) & table.has_extent
    if zero.any():
        found[Finding.ZERO_AREA] = [
            f"{zero.sum()} of {count} boxes with width and height have an area of 0: {effect}"
        ]

    absent = np.isnan(table.areas)
    if absent.any():
        found[Finding.NO_AREA] = [f"{absent.sum()} of {count} boxes have no key 'area': {effect}"]
    return found


def are_corners(as_corners: np.ndarray, corners_only: np.ndarray, num_with_extent: int) -> bool:
    """Return whether the boxes of a file are corners.

    Args:
        as_corners: (N,) bool, see :func:`find_corners`.
        corners_only: (N,) bool, see :func:`find_corners`.
        num_with_extent: number of boxes with an area.
    """
    num_fitting = int(as_corners.sum())
    num_misfits = int(corners_only.sum())
    if num_misfits < FEWEST_CORNERS or num_fitting < CORNER_SHARE * num_with_extent:
        return False

    if num_fitting == num_with_extent and num_with_extent >= MANY:
        return num_misfits >= MISFIT_SHARE * num_with_extent
    return 2 * num_misfits > num_with_extent


def check_content(content: Content, path: Path) -> tuple[dict[Finding, list[str]], str | None]:
    """Check the boxes of a valid annotation file.

    Args:
        content: of the file, whose entries are valid.
        path: of the file, for the messages.

    Returns:
        Findings to report, each as one line, and the reason why the file cannot be used, if any.
    """
    annotations = content.get("annotations", [])
    sizes = {image["id"]: (image["width"], image["height"]) for image in content["images"]}
    found = describe_findings(make_table(annotations, sizes), annotations)

    if Finding.TWICE in found:
        first = found[Finding.TWICE][0]
        num_twice = len(found[Finding.TWICE])
        found[Finding.TWICE] = [
            f"{num_twice} of {len(annotations)} boxes are in the file twice, such as: {first}; "
            "tools/check_dataset.py --fix keeps one of each"
        ]

    lines = {kind: [f"{path}: {line}" for line in lines] for kind, lines in found.items()}
    fault = next((lines[kind][0] for kind in FATAL if kind in lines), None)
    return lines, fault
