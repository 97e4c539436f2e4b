"""Tables of the classes and sizes in a data set, as lists of rows."""

from __future__ import annotations

import math
from collections import Counter, defaultdict

import numpy as np

from salience_detr.data.preparation.validation import Entry, ValidationResult, check_box

# Sides of COCO's small and medium objects, in pixels.
SMALL = 32
MEDIUM = 96
# Characters of the longest bar of the histogram.
BAR_LENGTH = 40

Row = dict[str, str | int | float]


def class_table(result: ValidationResult) -> list[Row]:
    """Count the boxes and images of each class, and its small, medium and large boxes."""
    by_category: dict[int, list[Entry]] = defaultdict(list)
    for annotation in result.usable("annotations"):
        by_category[annotation["category_id"]].append(annotation)

    rows: list[Row] = []
    for category in result.usable("categories"):
        annotations = by_category[category["id"]]
        areas = [width * height for width, height in box_sizes(annotations)]
        counts, _ = np.histogram(areas, bins=(0, SMALL**2, MEDIUM**2, np.inf))
        small, medium, large = counts.tolist()
        num_images = len({annotation["image_id"] for annotation in annotations})
        rows.append(
            {
                "class": category["name"], "id": category["id"], "boxes": len(annotations),
                "images": num_images, "small": small, "medium": medium, "large": large,
            }
        )  # fmt: skip
    return rows


def size_table(result: ValidationResult) -> list[Row]:
    """Compute quantiles of the sides of images and boxes, and of the boxes per image."""
    annotations = result.usable("annotations")
    sizes = box_sizes(annotations)
    image_sizes = [file.size for file in result.files if file.size]
    num_boxes = Counter(annotation["image_id"] for annotation in annotations)
    series = {
        "image width": [width for width, _ in image_sizes],
        "image height": [height for _, height in image_sizes],
        "box width": [width for width, _ in sizes],
        "box height": [height for _, height in sizes],
        "width / height of boxes": [width / height for width, height in sizes],
        "boxes per image": [num_boxes[entry["id"]] for entry in result.usable("images")],
    }

    quantile_names = ("smallest", "10 %", "median", "90 %", "largest")
    rows: list[Row] = []
    for name, values in series.items():
        if values:
            quantiles = np.percentile(values, [0, 10, 50, 90, 100]).tolist()
            rows.append({"": name, **dict(zip(quantile_names, quantiles, strict=True))})
    return rows


def size_histogram(result: ValidationResult) -> list[Row]:
    """Count boxes by the side of a square of their area; each bin is twice as wide as the last."""
    bins: Counter[int] = Counter()
    for width, height in box_sizes(result.usable("annotations")):
        bins[max(0, math.floor(math.log2(math.sqrt(width * height))))] += 1

    most = max(bins.values(), default=1)
    rows: list[Row] = []
    for i in range(min(bins, default=0), max(bins, default=-1) + 1):
        first = 2**i if i else 0
        bar = "#" * math.ceil(BAR_LENGTH * bins[i] / most)
        rows.append({"side of boxes": f"{first} to {2 ** (i + 1)}", "boxes": bins[i], "": bar})
    return rows


def box_sizes(annotations: list[Entry]) -> list[tuple[float, float]]:
    """Return the (width, height) of the boxes that have an area."""
    unlimited = (math.inf, math.inf)
    sizes = []
    for annotation in annotations:
        box = annotation.get("bbox")
        if check_box(box, unlimited) in (None, "box reaching out of the image"):
            sizes.append((box[2], box[3]))
    return sizes
