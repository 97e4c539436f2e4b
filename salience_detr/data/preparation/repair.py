"""Repair of a data set in COCO's format: a copy without the problems that validation found."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from salience_detr.data.annotation_checks import find_duplicates, make_table
from salience_detr.data.coco_format import (
    OPTIONAL,
    Entry,
    area_of,
    entry_fault,
    number_annotations,
)
from salience_detr.data.preparation.frames import Box, Size, frame_transform
from salience_detr.data.preparation.normalization import normalize
from salience_detr.data.preparation.validation import (
    ImageFile,
    ValidationResult,
    box_frame,
    check_box,
)

# Keys of annotations whose values can be repaired or left out.
REPAIRABLE = ("id", "bbox", *OPTIONAL)


@dataclass(frozen=True)
class KeptImage:
    """Image that stays in the data set.

    Attributes:
        entry: image as it is in the annotations.
        file: its file.
        frame: (width, height) of the frame in which its boxes were drawn.
        transform: function that moves (x0, y0, x1, y1) boxes from there into the frame of the file.
    """

    entry: Entry
    file: ImageFile
    frame: Size
    transform: Callable[[Box], Box]


def repair(
    result: ValidationResult, *, without: Collection[str] = ()
) -> tuple[dict[str, object], Counter[str]]:
    """Return a copy of a data set without problems, and the numbers of changes by kind.

    - Images are left out, with their boxes, that cannot be read, that share their id with another
      image, or whose boxes were drawn in an unknown frame.
    - Sizes become those of the images; boxes turn and scale with them.
    - Numbers that are texts, or have needless decimals, become numbers; see :func:`normalize`.
    - Boxes that are missing become the extent of their mask.
    - Boxes are clipped. They are left out if nothing remains or their class is unknown, and if the
      same box is in the file before.
    - Without a positive area, boxes get that of their sides.
    - File names become those of the images where they lie.
    - Annotations get new ids if one is repeated or not a positive number.

    Everything else stays, further keys included.

    Args:
        result: validation of the data set.
        without: SHA-256 of images to leave out as well, such as those of a second set.
    """
    normalized, changes = normalize(result.content)
    result = ValidationResult(result.json_file, normalized, result.files, result.moved)
    kept = select_images(result, without)
    changes["images left out"] = len(result.content["images"]) - len(kept)

    # Of categories that share an id the first one stays.
    categories: dict[int, Entry] = {}
    for category in result.usable("categories"):
        categories.setdefault(category["id"], category)

    # Boxes of images or categories that do not stay are left out.
    by_image: dict[object, list[Entry]] = defaultdict(list)
    for annotation in result.content["annotations"]:
        is_usable = entry_fault("annotations", annotation, without=REPAIRABLE) is None
        if is_usable and annotation["image_id"] in kept and annotation["category_id"] in categories:
            by_image[annotation["image_id"]].append(annotation)
        else:
            changes["boxes left out"] += 1

    images = []
    annotations = []
    for image_id, image in kept.items():
        width, height = image.file.size
        sized = {**image.entry, "width": width, "height": height}
        changes["sizes corrected"] += sized != image.entry

        name = image.entry["file_name"]
        changes["file names corrected"] += name in result.moved
        images.append({**sized, "file_name": result.moved.get(name, name)})
        annotations += repair_annotations(by_image[image_id], image, changes)

    annotations = drop_duplicates(annotations, changes)
    if number_annotations(annotations):
        changes["annotation ids given anew"] = len(annotations)

    content = {
        **result.content,
        "images": images,
        "annotations": annotations,
        "categories": [category for _, category in sorted(categories.items())],
    }
    # Without the kinds that did not occur.
    return content, +changes


def select_images(result: ValidationResult, without: Collection[str]) -> dict[object, KeptImage]:
    """Return the images that stay, by id.

    One image that is listed twice under an id stays once; of two images with one id neither does,
    since it is unknown whose the boxes are.
    """
    digests: dict[object, set[str]] = defaultdict(set)
    for entry, file in result.images():
        digests[entry["id"]].add(file.digest)

    kept: dict[object, KeptImage] = {}
    for entry, file in result.images():
        is_wanted = not file.problem and file.digest not in without
        frame = box_frame(entry, file)
        transform = frame_transform(frame, file.size, file.orientation)
        if is_wanted and transform is not None and len(digests[entry["id"]]) == 1:
            kept.setdefault(entry["id"], KeptImage(entry, file, frame, transform))

    # Ids must be of one type.
    if len(set(map(type, kept))) > 1:
        kept = {image_id: image for image_id, image in kept.items() if isinstance(image_id, int)}
    return kept


def repair_annotations(
    annotations: list[Entry], image: KeptImage, changes: Counter[str]
) -> list[Entry]:
    """Return copies of an image's annotations with boxes inside of it, and in its frame.

    Args:
        annotations: annotations of the image.
        image: the image.
        changes: numbers of changes, which are added to.
    """
    change = "boxes moved into the frame of their image"
    if image.frame == image.file.size:
        change = "boxes clipped"

    repaired = []
    for annotation in annotations:
        box = repair_box(annotation.get("bbox"), image)
        if box is None:
            changes["boxes left out"] += 1
            continue

        moved = dict(annotation)
        if box != annotation["bbox"]:
            changes[change] += 1
            moved |= {"bbox": box, "area": box[2] * box[3]}

        # Optional keys are left out that hold nothing usable.
        for key, (is_valid, _) in OPTIONAL.items():
            if moved.get(key) is None or not is_valid(moved[key]):
                moved.pop(key, None)

        area = area_of(moved)
        if area != moved.get("area"):
            changes["areas computed"] += 1
            moved["area"] = area
        repaired.append(moved)
    return repaired


def drop_duplicates(annotations: list[Entry], changes: Counter[str]) -> list[Entry]:
    """Return the annotations without those that are there before.

    Args:
        annotations: valid ones of all images.
        changes: numbers of changes, which are added to.
    """
    duplicates = find_duplicates(make_table(annotations))
    changes["boxes left out that were there twice"] += len(duplicates)
    return [x for place, x in enumerate(annotations) if place not in duplicates]


def repair_box(box: Any, image: KeptImage) -> list[float] | None:
    """Clip a "bbox", and move it into the frame of its image.

    Returns:
        (x, y, width, height) in the image; None if there is no box, or nothing of it is inside.
    """
    problem = check_box(box, image.frame)
    if problem not in (None, "box reaching out of the image"):
        return None
    if problem is None and image.frame == image.file.size:
        return list(box)

    # Clipped where it was drawn: the turned frame may differ by the rounding of its sides.
    x, y, width, height = box
    right, bottom = image.frame
    clipped = (max(x, 0), max(y, 0), min(x + width, right), min(y + height, bottom))
    x0, y0, x1, y1 = image.transform(clipped)
    return [x0, y0, x1 - x0, y1 - y0]
