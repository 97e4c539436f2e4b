"""Everything that can be wrong with a data set in COCO's format, found in one go.

Training stops at the first mistake; this reads every annotation and every picture and lists them all.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from salience_detr.data.datasets import REQUIRED_KEYS, DatasetError, read_json
from salience_detr.data.mapper import ImageReadError, read_image

# What training would stop at or get wrong ...
ERRORS = (
    "missing picture", "unreadable picture", "wrong size", "incomplete entry", "duplicate image id",
    "duplicate annotation id", "duplicate category id", "malformed box", "box without area", "box outside the picture",
    "unknown category", "unknown image", "picture in both sets",
)  # fmt: skip
# ... and what may be meant.
WARNINGS = (
    "box reaching out of the picture", "annotation id 0", "picture without boxes", "category without boxes",
    "picture twice in the set",
)  # fmt: skip
# Sides of COCO's small and medium objects, in pixels.
SMALL, MEDIUM = 32, 96
# Rounding of the annotation tool, in pixels.
TOLERANCE = 0.01


@dataclass(frozen=True)
class Picture:
    """What is in the file of a picture.

    Attributes:
        size: (width, height) as shown; None if it cannot be read.
        digest: SHA-256 of the file.
        problem: why it cannot be read.
    """

    size: tuple[int, int] | None = None
    digest: str = ""
    problem: str = ""


@dataclass
class Inspection:
    """What was found in one data set.

    Attributes:
        json_file: where it is described.
        content: images, annotations and categories as read.
        pictures: of each image of ``content``, in its order.
        findings: descriptions by kind (``ERRORS`` and ``WARNINGS``).
    """

    json_file: Path
    content: dict[str, list[dict[str, Any]]]
    pictures: list[Picture]
    findings: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    @property
    def num_errors(self) -> int:
        return sum(len(self.findings.get(kind, ())) for kind in ERRORS)


def inspect(json_file: Path, image_root: Path, *, workers: int = 0) -> Inspection:
    """Read all of a data set.

    Args:
        json_file: in COCO's format.
        image_root: the folder of the pictures.
        workers: processes that read pictures; 0 reads in this one.

    Raises:
        DatasetError: the file is not JSON, or lacks one of the three lists.
    """
    if not json_file.is_file():
        raise DatasetError(f"there is no annotation file {json_file}")
    content = read_json(json_file)
    for key in ("images", "annotations", "categories"):
        if not isinstance(content.get(key), list):
            raise DatasetError(f"{json_file} has no {key!r}; COCO's format needs images, annotations and categories")
    paths = [image_root / str(image.get("file_name")) if isinstance(image, dict) else image_root / "?"
             for image in content["images"]]  # fmt: skip
    result = Inspection(json_file, content, read_pictures(paths, workers))
    for kind, description in [*entry_problems(content), *picture_problems(result, paths), *box_problems(result)]:
        result.findings[kind].append(description)
    return result


def read_pictures(paths: Sequence[Path], workers: int) -> list[Picture]:
    """Decode all pictures, with a progress bar."""
    progress = {"total": len(paths), "desc": "pictures", "unit": "files"}
    if workers == 0:
        return [read_picture(path) for path in tqdm(paths, **progress)]
    with ProcessPoolExecutor(workers) as pool:
        return list(tqdm(pool.map(read_picture, paths, chunksize=16), **progress))


def read_picture(path: Path) -> Picture:
    """Decode one picture as training does."""
    if not path.is_file():
        return Picture(problem="missing")
    try:
        height, width = read_image(str(path)).shape[:2]
    except ImageReadError as error:
        return Picture(problem=str(error))
    return Picture((width, height), hashlib.sha256(path.read_bytes()).hexdigest())


def entry_problems(content: dict[str, list[Any]]) -> Iterator[tuple[str, str]]:
    """Kind and description of what is wrong with the entries, whatever the pictures are."""
    singular = {"images": "image", "categories": "category", "annotations": "annotation"}
    for kind, keys in REQUIRED_KEYS.items():
        for number, entry in enumerate(content[kind]):
            missing = [key for key in keys if not isinstance(entry, dict) or key not in entry]
            if missing:
                yield "incomplete entry", f"number {number} of {kind} has no {', '.join(missing)}"
        counts = Counter(entry["id"] for entry in complete(content[kind], ("id",)))
        for entry_id, count in counts.items():
            if count > 1:
                yield f"duplicate {singular[kind]} id", f"{entry_id}, {count} times"
    with_boxes = {x.get("category_id") for x in complete(content["annotations"], ("category_id",))}
    for category in complete(content["categories"], ("id", "name")):
        if category["id"] not in with_boxes:
            yield "category without boxes", f"{category['name']} (id {category['id']})"


def complete(entries: Iterable[Any], keys: Sequence[str]) -> list[dict[str, Any]]:
    """The entries that have all the keys."""
    return [entry for entry in entries if isinstance(entry, dict) and all(key in entry for key in keys)]


def picture_problems(result: Inspection, paths: Sequence[Path]) -> Iterator[tuple[str, str]]:
    """Kind and description of what is wrong with the pictures."""
    with_boxes = {x["image_id"] for x in complete(result.content["annotations"], ("image_id",))}
    seen: dict[str, Path] = {}
    for image, picture, path in zip(result.content["images"], result.pictures, paths, strict=True):
        if not complete([image], ("id", "file_name")):
            continue
        if picture.size is None:
            yield ("missing picture", str(path)) if picture.problem == "missing" else (
                "unreadable picture", picture.problem
            )  # fmt: skip
            continue
        said = (image.get("width"), image.get("height"))
        if said != picture.size and None not in said:
            yield "wrong size", f"{path} is {picture.size[0]}x{picture.size[1]}, the file says {said[0]}x{said[1]}"
        if image["id"] not in with_boxes:
            yield "picture without boxes", str(path)
        if picture.digest in seen:
            yield "picture twice in the set", f"{path} is the same as {seen[picture.digest]}"
        seen.setdefault(picture.digest, path)


def box_problems(result: Inspection) -> Iterator[tuple[str, str]]:
    """Kind and description of what is wrong with the annotations."""
    sizes = sizes_by_id(result)
    category_ids = {x["id"] for x in complete(result.content["categories"], ("id",))}
    for annotation in complete(result.content["annotations"], ("id", "image_id", "category_id", "bbox")):
        where = f"annotation {annotation['id']} (image {annotation['image_id']})"
        if annotation["id"] == 0:
            # COCO's evaluation takes a match with id 0 for none.
            yield "annotation id 0", f"{where}: evaluation would never count it as found"
        if annotation["category_id"] not in category_ids:
            yield "unknown category", f"{where} has the category id {annotation['category_id']}"
        if annotation["image_id"] not in sizes:
            yield "unknown image", f"{where}: there is no image {annotation['image_id']}"
            continue
        kind = box_problem(annotation["bbox"], sizes[annotation["image_id"]])
        if kind is not None:
            width, height = sizes[annotation["image_id"]]
            yield kind, f"{where} has the bbox {annotation['bbox']} in a picture of {width}x{height}"


def sizes_by_id(result: Inspection) -> dict[Any, tuple[float, float]]:
    """(width, height) of each image: of the picture, or of the file where that cannot be read."""
    sizes: dict[Any, tuple[float, float]] = {}
    for image, picture in zip(result.content["images"], result.pictures, strict=True):
        if complete([image], ("id", "width", "height")):
            sizes.setdefault(image["id"], picture.size or (image["width"], image["height"]))
    return sizes


def box_problem(box: Any, size: tuple[float, float]) -> str | None:
    """The kind of problem of an (x, y, width, height) box in a picture of (width, height)."""
    if not isinstance(box, list) or len(box) != 4 or not all(is_number(value) for value in box):
        return "malformed box"
    x, y, width, height = box
    if width <= 0 or height <= 0:
        return "box without area"
    if x >= size[0] or y >= size[1] or x + width <= 0 or y + height <= 0:
        return "box outside the picture"
    beyond = max(-x, -y, x + width - size[0], y + height - size[1])
    return "box reaching out of the picture" if beyond > TOLERANCE else None


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def find_leaks(train: Inspection, val: Inspection) -> None:
    """Add to the findings of ``val`` its pictures that are in ``train`` too, byte for byte."""
    known = {
        picture.digest: image["file_name"]
        for image, picture in zip(train.content["images"], train.pictures, strict=True)
        if picture.digest
    }
    for image, picture in zip(val.content["images"], val.pictures, strict=True):
        if picture.digest in known:
            description = f"{image['file_name']} is {known[picture.digest]} of {train.json_file}"
            val.findings["picture in both sets"].append(description)


def class_table(result: Inspection) -> list[dict[str, Any]]:
    """Boxes and pictures of each class, and how many boxes are small, medium and large."""
    rows = []
    usable = complete(result.content["annotations"], ("image_id", "category_id", "bbox"))
    for category in complete(result.content["categories"], ("id", "name")):
        own = [x for x in usable if x["category_id"] == category["id"]]
        areas = [x["bbox"][2] * x["bbox"][3] for x in own if box_problem(x["bbox"], (math.inf, math.inf)) is None]
        small, medium = sum(a < SMALL**2 for a in areas), sum(SMALL**2 <= a < MEDIUM**2 for a in areas)
        rows.append(
            {
                "class": category["name"],
                "id": category["id"],
                "boxes": len(own),
                "pictures": len({x["image_id"] for x in own}),
                "small": small,
                "medium": medium,
                "large": len(areas) - small - medium,
            }
        )
    return rows


def size_table(result: Inspection) -> list[dict[str, Any]]:
    """Smallest, median and largest sides of pictures and boxes, and boxes per picture."""
    usable = complete(result.content["annotations"], ("image_id", "bbox"))
    boxes = [x["bbox"] for x in usable if box_problem(x["bbox"], (math.inf, math.inf)) is None]
    sizes = [picture.size for picture in result.pictures if picture.size]
    per_image = Counter(x["image_id"] for x in usable)
    counts = [per_image[image["id"]] for image in complete(result.content["images"], ("id",))]
    series: dict[str, list[float]] = {
        "picture width": [size[0] for size in sizes],
        "picture height": [size[1] for size in sizes],
        "box width": [box[2] for box in boxes],
        "box height": [box[3] for box in boxes],
        "width / height of boxes": [box[2] / box[3] for box in boxes],
        "boxes per picture": [float(count) for count in counts],
    }
    names = ("smallest", "10 %", "median", "90 %", "largest")
    return [
        {"": name, **dict(zip(names, np.percentile(values, [0, 10, 50, 90, 100]).tolist(), strict=True))}
        for name, values in series.items()
        if values
    ]


def size_histogram(result: Inspection) -> list[dict[str, Any]]:
    """Boxes by the side of a square of their area, in pixels, each bin twice as wide as the one before."""
    boxes = [x["bbox"] for x in complete(result.content["annotations"], ("bbox",))]
    usable = [box for box in boxes if box_problem(box, (math.inf, math.inf)) is None]
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


def fixed(result: Inspection) -> tuple[dict[str, list[dict[str, Any]]], Counter[str]]:
    """A copy of the content without mistakes, and how often what was done.

    Pictures that cannot be read and repeated image ids go, with their boxes; sizes become those of the pictures; boxes
    are clipped, or go where nothing is left or the class is unknown; ids of annotations are given anew where one is
    repeated or 0. Everything else, further keys included, stays.
    """
    done: Counter[str] = Counter()
    images: dict[Any, dict[str, Any]] = {}
    for image, picture in zip(result.content["images"], result.pictures, strict=True):
        if not complete([image], ("id", "file_name")) or picture.size is None or image["id"] in images:
            done["pictures left out"] += 1
            continue
        width, height = picture.size
        done["sizes corrected"] += (image.get("width"), image.get("height")) != picture.size
        images[image["id"]] = {**image, "width": width, "height": height}
    categories = {x["id"]: x for x in reversed(complete(result.content["categories"], ("id", "name")))}
    annotations = []
    for annotation in result.content["annotations"]:
        mended = mend(annotation, images, categories)
        if mended is None:
            done["boxes left out"] += 1
            continue
        done["boxes clipped"] += mended["bbox"] != annotation["bbox"]
        annotations.append(mended)
    ids = [x.get("id", 0) for x in annotations]
    if 0 in ids or len(set(ids)) < len(ids):
        done["annotation ids given anew"] = len(ids)
        annotations = [{**x, "id": i} for i, x in enumerate(annotations, 1)]
    ordered = sorted(categories.values(), key=lambda category: category["id"])
    content = {"images": list(images.values()), "annotations": annotations, "categories": ordered}
    return {**result.content, **content}, Counter({what: count for what, count in done.items() if count})


def mend(annotation: Any, images: dict[Any, dict[str, Any]], categories: dict[Any, Any]) -> dict[str, Any] | None:
    """The annotation with a box inside its picture; None if it cannot be used."""
    if not complete([annotation], ("image_id", "category_id", "bbox")):
        return None
    image = images.get(annotation["image_id"])
    if image is None or annotation["category_id"] not in categories:
        return None
    kind = box_problem(annotation["bbox"], (image["width"], image["height"]))
    if kind is None:
        return dict(annotation)
    if kind != "box reaching out of the picture":
        return None
    x, y, width, height = annotation["bbox"]
    x0, y0 = max(x, 0), max(y, 0)
    box = [x0, y0, min(x + width, image["width"]) - x0, min(y + height, image["height"]) - y0]
    return {**annotation, "bbox": box, "area": box[2] * box[3]}
