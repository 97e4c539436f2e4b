"""Repair of a data set in COCO's format: a copy without the problems that validation found."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Collection
from typing import Any

from salience_detr.data.coco_format import OPTIONAL, entry_fault, is_side, is_whole
from salience_detr.data.preparation.frames import Box, Size, frame_transform
from salience_detr.data.preparation.validation import (
    Entry,
    ImageFile,
    ValidationResult,
    check_box,
)

# Keys of annotations whose values can be repaired or left out.
REPAIRABLE = ("id", "bbox", *OPTIONAL["annotations"])


def repair(
    result: ValidationResult, *, without: Collection[str] = ()
) -> tuple[dict[str, Any], Counter[str]]:
    """Return a copy of a data set without problems, and the numbers of changes by kind.

    - Images are left out, with their boxes, that cannot be read, that share their id with another
      image, or whose boxes were drawn in an unknown frame.
    - Sizes become those of the images; boxes turn and scale with them.
    - Boxes are clipped. They are left out if nothing remains or their class is unknown.
    - Annotations get new ids if one is repeated or not a positive number.

    Everything else stays, further keys included.

    Args:
        result: validation of the data set.
        without: SHA-256 of images to leave out as well, such as those of a second set.
    """
    changes: Counter[str] = Counter()
    kept = select_images(result, without)
    changes["images left out"] = len(result.content["images"]) - len(kept)

    # Of categories that share an id the first one stays.
    categories: dict[int, Entry] = {}
    for category in result.usable("categories"):
        categories.setdefault(category["id"], category)

    by_image: dict[Any, list[Entry]] = defaultdict(list)
    for annotation in result.content["annotations"]:
        is_usable = entry_fault("annotations", annotation, without=REPAIRABLE) is None
        if is_usable and annotation["image_id"] in kept and annotation["category_id"] in categories:
            by_image[annotation["image_id"]].append(annotation)
        else:
            changes["boxes left out"] += 1

    images = []
    annotations = []
    for image_id, (entry, file) in kept.items():
        repaired = repair_image(entry, file, by_image[image_id], changes)
        if repaired is not None:
            images.append(repaired[0])
            annotations += repaired[1]
    number_annotations(annotations, changes)

    content = {
        **result.content,
        "images": images,
        "annotations": annotations,
        "categories": [categories[category_id] for category_id in sorted(categories)],
    }
    return content, +changes


def select_images(
    result: ValidationResult, without: Collection[str]
) -> dict[Any, tuple[Entry, ImageFile]]:
    """Return the images that stay, by id.

    One image that is listed twice under an id stays once; of two images with one id neither does,
    since it is unknown whose the boxes are.
    """
    digests: dict[Any, set[str]] = defaultdict(set)
    for entry, file in result.images():
        digests[entry["id"]].add(file.digest)

    kept: dict[Any, tuple[Entry, ImageFile]] = {}
    for entry, file in result.images():
        is_wanted = file.size is not None and file.digest not in without
        if is_wanted and len(digests[entry["id"]]) == 1:
            kept.setdefault(entry["id"], (entry, file))

    # All ids must be of one type.
    if len({type(image_id) for image_id in kept}) > 1:
        kept = {image_id: pair for image_id, pair in kept.items() if isinstance(image_id, int)}
    return kept


def repair_image(
    entry: Entry, file: ImageFile, annotations: list[Entry], changes: Counter[str]
) -> tuple[Entry, list[Entry]] | None:
    """Return an image with its true size, and its annotations with boxes in that frame.

    Args:
        entry: image.
        file: its file.
        annotations: its annotations.
        changes: numbers of changes, which are added to.

    Returns:
        Copies of image and annotations; None if the frame of the boxes is unknown.
    """
    assert file.size is not None
    width, height = file.size
    annotated_size = (entry.get("width"), entry.get("height"))
    frame: Size = file.size
    if all(is_side(side) for side in annotated_size):
        frame = (float(entry["width"]), float(entry["height"]))

    transform = frame_transform(frame, file.size, file.orientation)
    if transform is None:
        changes["images left out"] += 1
        changes["boxes left out"] += len(annotations)
        return None

    changes["sizes corrected"] += annotated_size != file.size
    change = "boxes moved into the frame of their image"
    if frame == file.size:
        change = "boxes clipped"

    repaired = []
    for annotation in annotations:
        box = repair_box(annotation.get("bbox"), frame, file.size, transform)
        if box is None:
            changes["boxes left out"] += 1
        elif box == annotation["bbox"]:
            repaired.append(drop_unusable_options(annotation))
        else:
            changes[change] += 1
            moved = {**annotation, "bbox": box, "area": box[2] * box[3]}
            repaired.append(drop_unusable_options(moved))
    return {**entry, "width": width, "height": height}, repaired


def repair_box(
    box: Any, frame: Size, image_size: Size, transform: Callable[[Box], Box]
) -> list[float] | None:
    """Clip a box, and move it into the frame of its image.

    Args:
        box: "bbox" of an annotation.
        frame: (width, height) in which the box was drawn.
        image_size: EXIF-corrected (width, height) of the image.
        transform: see :func:`~salience_detr.data.preparation.frames.frame_transform`.

    Returns:
        (x, y, width, height) in the image; None if there is no box, or nothing of it is inside.
    """
    problem = check_box(box, frame)
    if problem not in (None, "box reaching out of the image"):
        return None
    if problem is None and frame == image_size:
        return list(box)

    x, y, width, height = box
    x0, y0, x1, y1 = transform(
        (max(x, 0), max(y, 0), min(x + width, frame[0]), min(y + height, frame[1]))
    )
    return [x0, y0, x1 - x0, y1 - y0]


def drop_unusable_options(annotation: Entry) -> Entry:
    """Return a copy without optional keys that hold nothing usable."""
    repaired = dict(annotation)
    for key, (is_valid, _) in OPTIONAL["annotations"].items():
        if key in repaired and (repaired[key] is None or not is_valid(repaired[key])):
            del repaired[key]
    return repaired


def number_annotations(annotations: list[Entry], changes: Counter[str]) -> None:
    """Give new ids to all annotations, in place, if one is repeated or not a positive number."""
    ids: list[Any] = [annotation.get("id") for annotation in annotations]
    if all(is_whole(x) and x > 0 for x in ids) and len(set(ids)) == len(ids):
        return

    changes["annotation ids given anew"] = len(ids)
    for number, annotation in enumerate(annotations, 1):
        annotation["id"] = number
