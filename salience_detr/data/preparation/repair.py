"""A copy of a data set in COCO's format without the mistakes that an inspection found."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection
from typing import Any

from salience_detr.data.coco_format import OPTIONAL, entry_fault, is_side, is_whole
from salience_detr.data.preparation.frames import to_shown_frame
from salience_detr.data.preparation.validation import Image, Inspection, box_problem

Entry = dict[str, Any]

# What is looked at apart, or can be given anew or left out.
MENDED = ("id", "bbox", *OPTIONAL["annotations"])


def fixed(
    result: Inspection, *, without: Collection[str] = ()
) -> tuple[dict[str, Any], Counter[str]]:
    """A copy of the content without mistakes, and how often what was done.

    Images that cannot be read, that share their id with another one, or whose boxes were drawn in an unknown frame
    go, with their boxes; sizes become those of the images, and boxes turn or grow with them; boxes are clipped, or
    go where nothing is left or the class is unknown; ids of annotations are given anew where one is repeated or no
    positive number. Everything else, further keys included, stays.

    Args:
        result: what to mend.
        without: SHA-256 of images to leave out as well, such as those of a second set.
    """
    done: Counter[str] = Counter()
    kept = choose_images(result, without, done)
    categories: dict[Any, Entry] = {x["id"]: x for x in reversed(result.usable("categories"))}
    boxes: dict[Any, list[Entry]] = defaultdict(list)
    for annotation in result.content["annotations"]:
        is_usable = entry_fault("annotations", annotation, without=MENDED) is None
        if is_usable and annotation["image_id"] in kept and annotation["category_id"] in categories:
            boxes[annotation["image_id"]].append(annotation)
        else:
            done["boxes left out"] += 1
    images, annotations = [], []
    for image_id, (image, image_file) in kept.items():
        mended = mend_image(image, image_file, boxes[image_id], done)
        if mended is not None:
            images.append(mended[0])
            annotations += mended[1]
    number_annotations(annotations, done)
    ordered = sorted(categories.values(), key=lambda category: category["id"])
    content = {"images": images, "annotations": annotations, "categories": ordered}
    return {**result.content, **content}, Counter(
        {what: count for what, count in done.items() if count}
    )


def choose_images(
    result: Inspection, without: Collection[str], done: Counter[str]
) -> dict[Any, tuple[Entry, Image]]:
    """The images that stay, by id. Of one image that is listed twice under an id the first entry does."""
    digests: dict[Any, set[str]] = defaultdict(set)
    for image, image_file in result.named_images():
        digests[image["id"]].add(image_file.digest)
    kept: dict[Any, tuple[Entry, Image]] = {}
    for image, image_file in result.named_images():
        is_known = image_file.size is not None and image_file.digest not in without
        if is_known and len(digests[image["id"]]) == 1:
            kept.setdefault(image["id"], (image, image_file))
    if len({type(image_id) for image_id in kept}) > 1:
        kept = {image_id: entry for image_id, entry in kept.items() if isinstance(image_id, int)}
    done["images left out"] += len(result.content["images"]) - len(kept)
    return kept


def mend_image(
    image: Entry, image_file: Image, annotations: list[Entry], done: Counter[str]
) -> tuple[Entry, list[Entry]] | None:
    """An image with its true size and its boxes in that frame; None if the frame of the boxes is not known."""
    assert image_file.size is not None
    width, height = image_file.size
    said = (image.get("width"), image.get("height"))
    frame: tuple[float, float] = (width, height)
    if is_side(said[0]) and is_side(said[1]):
        frame = (float(said[0]), float(said[1]))  # type: ignore[arg-type]
    if to_shown_frame((0, 0, *frame), frame, image_file.size, image_file.orientation) is None:
        done["images left out"] += 1
        done["boxes left out"] += len(annotations)
        return None
    done["sizes corrected"] += said != image_file.size
    mended = []
    for annotation in annotations:
        box = mend_box(annotation.get("bbox"), frame, image_file)
        if box is None:
            done["boxes left out"] += 1
        elif box == annotation["bbox"]:
            mended.append(clean(annotation))
        else:
            done[
                "boxes clipped"
                if frame == image_file.size
                else "boxes moved into the frame of their image"
            ] += 1
            mended.append(clean({**annotation, "bbox": box, "area": box[2] * box[3]}))
    return {**image, "width": width, "height": height}, mended


def mend_box(box: Any, frame: tuple[float, float], image_file: Image) -> list[float] | None:
    """An (x, y, width, height) box of a frame of (width, height), in that of its image; None if nothing is inside."""
    assert image_file.size is not None
    if box_problem(box, frame) not in (None, "box reaching out of the image"):
        return None
    if box_problem(box, frame) is None and frame == image_file.size:
        return list(box)
    x, y, width, height = box
    corners = (max(x, 0), max(y, 0), min(x + width, frame[0]), min(y + height, frame[1]))
    shown = to_shown_frame(corners, frame, image_file.size, image_file.orientation)
    assert shown is not None
    return [shown[0], shown[1], shown[2] - shown[0], shown[3] - shown[1]]


def clean(annotation: Entry) -> Entry:
    """A copy without keys that may be left out and hold nothing usable."""
    rules = OPTIONAL["annotations"]
    return {
        k: v for k, v in annotation.items() if k not in rules or (v is not None and rules[k][0](v))
    }


def number_annotations(annotations: list[Entry], done: Counter[str]) -> None:
    """Give all ids anew, in place, if one is repeated or no positive number."""
    ids: list[Any] = [annotation.get("id") for annotation in annotations]
    if all(is_whole(x) and x > 0 for x in ids) and len(set(ids)) == len(ids):
        return
    done["annotation ids given anew"] = len(ids)
    for number, annotation in enumerate(annotations, 1):
        annotation["id"] = number
