"""Everything that can be wrong with a data set in COCO's format, found in one go.

Training stops at the first mistake; this reads every annotation and every image and lists them all.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from salience_detr.data.coco_format import (
    LISTS,
    box_fault,
    entry_fault,
    image_path,
    is_id,
    read_coco,
)
from salience_detr.data.images import UNREADABLE, ImageReadError, read_image
from salience_detr.data.preparation.frames import shown_size

# What training would stop at or get wrong ...
ERRORS = (
    "missing image", "unreadable image", "wrong size", "unusable entry", "duplicate image id",
    "duplicate annotation id", "duplicate category id", "malformed box", "box without area", "box outside the image",
    "unknown category", "unknown image", "nothing to train on", "image in both sets",
)  # fmt: skip
# ... and what may be meant.
WARNINGS = (
    "box reaching out of the image", "annotation id 0", "image without boxes", "category without boxes",
    "category name twice", "image of nearly one color", "image twice in the set",
)  # fmt: skip
# Sides of COCO's small and medium objects, in pixels.
SMALL, MEDIUM = 32, 96
# Rounding of the annotation tool, in pixels.
TOLERANCE = 0.01
# Range of values, of 256, below which nobody sees anything: of 12 bits in a file of 16, for example.
FAINT = 16


@dataclass(frozen=True)
class Image:
    """What is in the file of an image.

    Attributes:
        size: (width, height) as shown; None if it cannot be read.
        orientation: of its EXIF data.
        digest: SHA-256 of the file.
        is_faint: whether its pixels hardly differ.
        problem: why it cannot be read.
    """

    size: tuple[int, int] | None = None
    orientation: int = 1
    digest: str = ""
    is_faint: bool = False
    problem: str = ""


@dataclass
class Inspection:
    """What was found in one data set.

    Attributes:
        json_file: where it is described.
        content: images, annotations and categories as read.
        images: of each image of ``content``, in its order.
        findings: descriptions by kind (``ERRORS`` and ``WARNINGS``).
    """

    json_file: Path
    content: dict[str, list[Any]]
    images: list[Image]
    findings: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    @property
    def num_errors(self) -> int:
        return sum(len(self.findings.get(kind, ())) for kind in ERRORS)

    def usable(self, kind: str) -> list[dict[str, Any]]:
        """The entries of a list that are right by themselves; images tell their size, boxes are looked at apart."""
        without = ("width", "height") if kind == "images" else ("bbox",)
        return [
            entry
            for entry in self.content[kind]
            if entry_fault(kind, entry, without=without) is None
        ]

    def named_images(self) -> list[tuple[dict[str, Any], Image]]:
        """The images with an id and a file name, each with its image."""
        usable = {id(image) for image in self.usable("images")}
        both = zip(self.content["images"], self.images, strict=True)
        return [(image, image_file) for image, image_file in both if id(image) in usable]


def inspect(json_file: Path, image_root: Path, *, workers: int = 0) -> Inspection:
    """Read all of a data set.

    Args:
        json_file: in COCO's format.
        image_root: the folder of the images.
        workers: processes that read images; 0 reads in this one.

    Raises:
        DatasetError: the file is not JSON, or lacks one of the three lists.
    """
    content = read_coco(json_file)
    names = [
        image.get("file_name") if isinstance(image, dict) else None for image in content["images"]
    ]
    paths = [image_path(image_root, name) if isinstance(name, str) else Path() for name in names]
    result = Inspection(json_file, content, read_images(paths, workers))
    for problems in (entry_problems, image_problems, box_problems):
        for kind, description in problems(result):
            result.findings[kind].append(description)
    return result


def read_images(paths: Sequence[Path], workers: int) -> list[Image]:
    """Decode all images, with a progress bar."""
    progress = {"total": len(paths), "desc": "images", "unit": "files"}
    if workers == 0:
        return [read_image_file(path) for path in tqdm(paths, **progress)]
    with ProcessPoolExecutor(workers) as pool:
        return list(tqdm(pool.map(read_image_file, paths, chunksize=16), **progress))


def read_image_file(path: Path) -> Image:
    """Decode one image as training does."""
    if not path.is_file():
        return Image(problem="missing")
    try:
        pixels = read_image(str(path))
        size, orientation = shown_size(path)
    except (ImageReadError, *UNREADABLE) as error:
        return Image(problem=str(error))
    is_faint = int(pixels.max()) - int(pixels.min()) < FAINT
    return Image(size, orientation, hashlib.sha256(path.read_bytes()).hexdigest(), is_faint)


def entry_problems(result: Inspection) -> Iterator[tuple[str, str]]:
    """Kind and description of what is wrong with the entries, whatever the images are."""
    singular = {"images": "image", "categories": "category", "annotations": "annotation"}
    for kind in LISTS:
        for number, entry in enumerate(result.content[kind]):
            fault = entry_fault(kind, entry, without=("bbox",))
            if fault is not None:
                yield "unusable entry", f"number {number} of {kind} {fault}"
        ids = [
            entry["id"]
            for entry in result.content[kind]
            if isinstance(entry, dict) and is_id(entry.get("id"))
        ]
        for entry_id, count in Counter(ids).items():
            if count > 1:
                yield f"duplicate {singular[kind]} id", f"{entry_id!r}, {count} times"
        if kind == "images" and len({type(image_id) for image_id in ids}) > 1:
            yield "unusable entry", "some image ids are numbers and others are texts"
    for kind in ("images", "categories"):
        if not result.usable(kind):
            yield "nothing to train on", f"there are no {kind}"
    with_boxes = {x["category_id"] for x in result.usable("annotations")}
    for category in result.usable("categories"):
        if category["id"] not in with_boxes:
            yield "category without boxes", f"{category['name']} (id {category['id']})"
    names = Counter(category["name"] for category in result.usable("categories"))
    yield from (("category name twice", name) for name, count in names.items() if count > 1)


def image_problems(result: Inspection) -> Iterator[tuple[str, str]]:
    """Kind and description of what is wrong with the images."""
    with_boxes = {x["image_id"] for x in result.usable("annotations")}
    seen: dict[str, str] = {}
    for image, image_file in result.named_images():
        name = image["file_name"]
        if image_file.size is None:
            yield (
                ("missing image", name)
                if image_file.problem == "missing"
                else ("unreadable image", image_file.problem)
            )
            continue
        said = (image.get("width"), image.get("height"))
        if entry_fault("images", image) is None and said != image_file.size:
            yield (
                "wrong size",
                f"{name} is {image_file.size[0]}x{image_file.size[1]}, the file says {said[0]}x{said[1]}",
            )
        if image["id"] not in with_boxes:
            yield "image without boxes", name
        if image_file.is_faint:
            yield "image of nearly one color", name
        if image_file.digest in seen:
            yield "image twice in the set", f"{name} is the same as {seen[image_file.digest]}"
        seen.setdefault(image_file.digest, name)


def box_problems(result: Inspection) -> Iterator[tuple[str, str]]:
    """Kind and description of what is wrong with the annotations."""
    known = {image["id"] for image in result.usable("images")}
    sizes = sizes_by_id(result)
    category_ids = {x["id"] for x in result.usable("categories")}
    for annotation in result.usable("annotations"):
        where = f"annotation {annotation['id']} (image {annotation['image_id']})"
        if annotation["id"] == 0:
            # COCO's evaluation takes a match with id 0 for none.
            yield (
                "annotation id 0",
                f"{where}: other programs' evaluation would never count it as found",
            )
        if annotation["category_id"] not in category_ids:
            yield "unknown category", f"{where} has the category id {annotation['category_id']}"
        if annotation["image_id"] not in known:
            yield "unknown image", f"{where}: there is no image {annotation['image_id']!r}"
        width, height = sizes.get(annotation["image_id"], (math.inf, math.inf))
        kind = box_problem(annotation.get("bbox"), (width, height))
        if kind is not None:
            yield (
                kind,
                f"{where} has the bbox {annotation.get('bbox')!r:.80} in an image of {width}x{height}",
            )


def sizes_by_id(result: Inspection) -> dict[Any, tuple[float, float]]:
    """(width, height) of each image in the frame of its boxes: as the file says or, where it does not, as it is."""
    sizes: dict[Any, tuple[float, float]] = {}
    for image, image_file in result.named_images():
        if entry_fault("images", image) is None:
            sizes.setdefault(image["id"], (image["width"], image["height"]))
        elif image_file.size is not None:
            sizes.setdefault(image["id"], image_file.size)
    return sizes


def box_problem(box: Any, size: tuple[float, float]) -> str | None:
    """The kind of problem of an (x, y, width, height) box in an image of (width, height)."""
    if box_fault(box) is not None:
        return "malformed box"
    x, y, width, height = box
    if width <= 0 or height <= 0:
        return "box without area"
    if x >= size[0] or y >= size[1] or x + width <= 0 or y + height <= 0:
        return "box outside the image"
    beyond = max(-x, -y, x + width - size[0], y + height - size[1])
    return "box reaching out of the image" if beyond > TOLERANCE else None


def find_leaks(train: Inspection, val: Inspection) -> None:
    """Add to the findings of ``val`` its images that are in ``train`` too, byte for byte."""
    known = {
        image_file.digest: image["file_name"]
        for image, image_file in train.named_images()
        if image_file.digest
    }
    for image, image_file in val.named_images():
        if image_file.digest in known:
            description = f"{image['file_name']} is {known[image_file.digest]} of {train.json_file}"
            val.findings["image in both sets"].append(description)


def has_area(annotation: dict[str, Any]) -> bool:
    return box_problem(annotation.get("bbox"), (math.inf, math.inf)) in (
        None,
        "box reaching out of the image",
    )


def class_table(result: Inspection) -> list[dict[str, Any]]:
    """Boxes and images of each class, and how many boxes are small, medium and large."""
    rows = []
    usable = result.usable("annotations")
    for category in result.usable("categories"):
        own = [x for x in usable if x["category_id"] == category["id"]]
        areas = [x["bbox"][2] * x["bbox"][3] for x in own if has_area(x)]
        small, medium = (
            sum(a < SMALL**2 for a in areas),
            sum(SMALL**2 <= a < MEDIUM**2 for a in areas),
        )
        rows.append(
            {
                "class": category["name"],
                "id": category["id"],
                "boxes": len(own),
                "images": len({x["image_id"] for x in own}),
                "small": small,
                "medium": medium,
                "large": len(areas) - small - medium,
            }
        )
    return rows


def size_table(result: Inspection) -> list[dict[str, Any]]:
    """Smallest, median and largest sides of images and boxes, and boxes per image."""
    usable = result.usable("annotations")
    boxes = [x["bbox"] for x in usable if has_area(x)]
    sizes = [image_file.size for image_file in result.images if image_file.size]
    per_image = Counter(x["image_id"] for x in usable)
    counts = [per_image[image["id"]] for image in result.usable("images")]
    series: dict[str, list[float]] = {
        "image width": [size[0] for size in sizes],
        "image height": [size[1] for size in sizes],
        "box width": [box[2] for box in boxes],
        "box height": [box[3] for box in boxes],
        "width / height of boxes": [box[2] / box[3] for box in boxes],
        "boxes per image": [float(count) for count in counts],
    }
    names = ("smallest", "10 %", "median", "90 %", "largest")
    return [
        {
            "": name,
            **dict(zip(names, np.percentile(values, [0, 10, 50, 90, 100]).tolist(), strict=True)),
        }
        for name, values in series.items()
        if values
    ]


def size_histogram(result: Inspection) -> list[dict[str, Any]]:
    """Boxes by the side of a square of their area, in pixels, each bin twice as wide as the one before."""
    usable = [x["bbox"] for x in result.usable("annotations") if has_area(x)]
    bins = Counter(max(0, math.floor(math.log2(math.sqrt(box[2] * box[3])))) for box in usable)
    most = max(bins.values(), default=1)
    return [
        {
            "side of boxes": f"{2**i if i else 0} to {2 ** (i + 1)}",
            "boxes": bins[i],
            "": "#" * math.ceil(40 * bins[i] / most),
        }
        for i in range(min(bins, default=0), max(bins, default=-1) + 1)
    ]
