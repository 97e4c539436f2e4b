"""Tables of the classes and sizes in a data set, as lists of rows."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from typing import Any

import numpy as np

from salience_detr.data.coco_format import Entry, distinct_names
from salience_detr.data.preparation.validation import UNKNOWN_SIZE, ValidationResult, check_box

# Sides of COCO's small and medium objects, in pixels.
SMALL = 32
MEDIUM = 96
QUANTILES = {"smallest": 0, "10 %": 10, "median": 50, "90 %": 90, "largest": 100}
# Characters of the longest bar of the histogram.
BAR_LENGTH = 40

Row = dict[str, Any]


def class_table(result: ValidationResult) -> list[Row]:
    """Count the boxes and images of each class, and its small, medium and large boxes."""
    by_category: dict[int, list[Entry]] = defaultdict(list)
    for annotation in result.usable("annotations"):
        by_category[annotation["category_id"]].append(annotation)

    rows = []
    categories = result.usable("categories")
    for category, name in zip(categories, distinct_names(categories), strict=True):
        annotations = by_category[category["id"]]
        areas = box_sizes(annotations).prod(axis=1)
        counts, _ = np.histogram(areas, bins=(0, SMALL**2, MEDIUM**2, np.inf))
        row = {
            "class": name,
            "id": category["id"],
            "boxes": len(annotations),
            "images": len({annotation["image_id"] for annotation in annotations}),
        }
        rows.append(row | dict(zip(("small", "medium", "large"), counts.tolist(), strict=True)))
    return rows


def size_table(result: ValidationResult) -> list[Row]:
    """Compute quantiles of the sides of images and boxes, and of the boxes per image."""
    annotations = result.usable("annotations")
    widths, heights = box_sizes(annotations).T
    image_sizes = [file.size for file in result.files if not file.problem]
    num_boxes = Counter(annotation["image_id"] for annotation in annotations)
    series = {
        "image width": [width for width, _ in image_sizes],
        "image height": [height for _, height in image_sizes],
        "box width": widths,
        "box height": heights,
        "width / height of boxes": widths / heights,
        "boxes per image": [num_boxes[entry["id"]] for entry in result.usable("images")],
    }

    rows = []
    for name, values in series.items():
        if len(values):
            quantiles = np.percentile(values, list(QUANTILES.values())).tolist()
            rows.append({"": name, **dict(zip(QUANTILES, quantiles, strict=True))})
    return rows


def size_histogram(result: ValidationResult) -> list[Row]:
    """Count boxes by the side of a square of their area; each bin is twice as wide as the last."""
    sides = np.sqrt(box_sizes(result.usable("annotations")).prod(axis=1))
    exponents = np.floor(np.log2(sides)).clip(min=0)
    counts = Counter(exponents.astype(int).tolist())

    rows = []
    most = max(counts.values(), default=1)
    for i in range(min(counts, default=0), max(counts, default=-1) + 1):
        # Boxes smaller than a pixel are in the first bin too.
        start = 2**i if i else 0
        bar = "#" * math.ceil(BAR_LENGTH * counts[i] / most)
        rows.append({"side of boxes": f"{start} to {2 ** (i + 1)}", "boxes": counts[i], "": bar})
    return rows


def box_sizes(annotations: list[Entry]) -> np.ndarray:
    """Return the (N, 2) widths and heights of the boxes that have an area."""
    boxes: list[Any] = [annotation.get("bbox") for annotation in annotations]
    inside = (None, "box reaching out of the image")
    sizes = [box[2:] for box in boxes if check_box(box, UNKNOWN_SIZE) in inside]
    return np.array(sizes, dtype=float).reshape(-1, 2)
