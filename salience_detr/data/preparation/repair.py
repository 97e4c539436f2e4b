"""Repair of a data set in COCO's format: a copy without the problems that validation found."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Collection
from typing import Any

from salience_detr.data.coco_format import OPTIONAL, entry_fault, is_whole
from salience_detr.data.preparation.frames import Box, frame_transform
from salience_detr.data.preparation.validation import (
    Entry,
    ImageFile,
    ValidationResult,
    box_frame,
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

    # Boxes of images or categories that do not stay are left out.
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
        width, height = file.size
        images.append({**entry, "width": width, "height": height})
        changes["sizes corrected"] += images[-1] != entry
        annotations += repair_annotations(by_image[image_id], entry, file, changes)
    number_annotations(annotations, changes)

    content = {
        **result.content,
        "images": images,
        "annotations": annotations,
        "categories": [category for _, category in sorted(categories.items())],
    }
    # Without the kinds that did not occur.
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
        is_wanted = not file.problem and file.digest not in without
        if is_wanted and len(digests[entry["id"]]) == 1:
            kept.setdefault(entry["id"], (entry, file))

    # Ids must be of one type, and boxes drawn in a known frame.
    has_mixed_ids = len(set(map(type, kept))) > 1
    for image_id, pair in list(kept.items()):
        is_other_type = has_mixed_ids and not isinstance(image_id, int)
        if is_other_type or box_transform(*pair) is None:
            del kept[image_id]
    return kept


def box_transform(entry: Entry, file: ImageFile) -> Callable[[Box], Box] | None:
    """Return the function that moves an image's boxes into its frame; None if theirs is unknown."""
    return frame_transform(box_frame(entry, file), file.size, file.orientation)


def repair_annotations(
    annotations: list[Entry], entry: Entry, file: ImageFile, changes: Counter[str]
) -> list[Entry]:
    """Return copies of an image's annotations with boxes inside of it, and in its frame.

    Args:
        annotations: annotations of the image.
        entry: image.
        file: its file.
        changes: numbers of changes, which are added to.
    """
    change = "boxes moved into the frame of their image"
    if box_frame(entry, file) == file.size:
        change = "boxes clipped"

    repaired = []
    for annotation in annotations:
        box = repair_box(annotation.get("bbox"), entry, file)
        if box is None:
            changes["boxes left out"] += 1
            continue

        moved = dict(annotation)
        if box != annotation["bbox"]:
            changes[change] += 1
            moved |= {"bbox": box, "area": box[2] * box[3]}

        # Optional keys are left out that hold nothing usable.
        for key, (is_valid, _) in OPTIONAL["annotations"].items():
            if moved.get(key) is None or not is_valid(moved[key]):
                moved.pop(key, None)
        repaired.append(moved)
    return repaired


def repair_box(box: Any, entry: Entry, file: ImageFile) -> list[float] | None:
    """Clip a box, and move it into the frame of its image.

    Args:
        box: "bbox" of an annotation.
        entry: image.
        file: its file.

    Returns:
        (x, y, width, height) in the image; None if there is no box, or nothing of it is inside.
    """
    frame = box_frame(entry, file)
    transform = box_transform(entry, file)
    problem = check_box(box, frame)
    if problem is None and frame == file.size:
        return list(box)
    if transform is None or problem not in (None, "box reaching out of the image"):
        return None

    # Clipped where it was drawn: the turned frame may differ by the rounding of its sides.
    x, y, width, height = box
    x0, y0, x1, y1 = transform(
        (max(x, 0), max(y, 0), min(x + width, frame[0]), min(y + height, frame[1]))
    )
    return [x0, y0, x1 - x0, y1 - y0]


def number_annotations(annotations: list[Entry], changes: Counter[str]) -> None:
    """Give new ids to all annotations, in place, if one is repeated or not a positive number."""
    ids: list[Any] = [annotation.get("id") for annotation in annotations]
    if all(is_whole(x) and x > 0 for x in ids) and len(set(ids)) == len(ids):
        return

    changes["annotation ids given anew"] = len(ids)
    for number, annotation in enumerate(annotations, 1):
        annotation["id"] = number
