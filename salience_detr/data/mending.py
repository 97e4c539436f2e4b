"""A copy of a data set in COCO's format without the mistakes that an inspection found."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection
from typing import Any

from salience_detr.data.coco_format import OPTIONAL, entry_fault, is_side, is_whole
from salience_detr.data.frames import to_shown_frame
from salience_detr.data.inspection import Inspection, Picture, box_problem

Entry = dict[str, Any]

# What is looked at apart, or can be given anew or left out.
MENDED = ("id", "bbox", *OPTIONAL["annotations"])


def fixed(result: Inspection, *, without: Collection[str] = ()) -> tuple[dict[str, Any], Counter[str]]:
    """A copy of the content without mistakes, and how often what was done.

    Pictures that cannot be read, that share their id with another one, or whose boxes were drawn in an unknown frame
    go, with their boxes; sizes become those of the pictures, and boxes turn or grow with them; boxes are clipped, or
    go where nothing is left or the class is unknown; ids of annotations are given anew where one is repeated or no
    positive number. Everything else, further keys included, stays.

    Args:
        result: what to mend.
        without: SHA-256 of pictures to leave out as well, such as those of a second set.
    """
    done: Counter[str] = Counter()
    kept = choose_pictures(result, without, done)
    categories: dict[Any, Entry] = {x["id"]: x for x in reversed(result.usable("categories"))}
    boxes: dict[Any, list[Entry]] = defaultdict(list)
    for annotation in result.content["annotations"]:
        is_usable = entry_fault("annotations", annotation, without=MENDED) is None
        if is_usable and annotation["image_id"] in kept and annotation["category_id"] in categories:
            boxes[annotation["image_id"]].append(annotation)
        else:
            done["boxes left out"] += 1
    images, annotations = [], []
    for image_id, (image, picture) in kept.items():
        mended = mend_image(image, picture, boxes[image_id], done)
        if mended is not None:
            images.append(mended[0])
            annotations += mended[1]
    number_annotations(annotations, done)
    ordered = sorted(categories.values(), key=lambda category: category["id"])
    content = {"images": images, "annotations": annotations, "categories": ordered}
    return {**result.content, **content}, Counter({what: count for what, count in done.items() if count})


def choose_pictures(
    result: Inspection, without: Collection[str], done: Counter[str]
) -> dict[Any, tuple[Entry, Picture]]:
    """The images that stay, by id. Of one picture that is listed twice under an id the first entry does."""
    digests: dict[Any, set[str]] = defaultdict(set)
    for image, picture in result.named_pictures():
        digests[image["id"]].add(picture.digest)
    kept: dict[Any, tuple[Entry, Picture]] = {}
    for image, picture in result.named_pictures():
        is_known = picture.size is not None and picture.digest not in without
        if is_known and len(digests[image["id"]]) == 1:
            kept.setdefault(image["id"], (image, picture))
    if len({type(image_id) for image_id in kept}) > 1:
        kept = {image_id: entry for image_id, entry in kept.items() if isinstance(image_id, int)}
    done["pictures left out"] += len(result.content["images"]) - len(kept)
    return kept


def mend_image(
    image: Entry, picture: Picture, annotations: list[Entry], done: Counter[str]
) -> tuple[Entry, list[Entry]] | None:
    """An image with its true size and its boxes in that frame; None if the frame of the boxes is not known."""
    assert picture.size is not None
    width, height = picture.size
    said = (image.get("width"), image.get("height"))
    frame = (float(said[0]), float(said[1])) if is_side(said[0]) and is_side(said[1]) else (width, height)  # type: ignore[arg-type]
    if to_shown_frame((0, 0, *frame), frame, picture.size, picture.orientation) is None:
        done["pictures left out"] += 1
        done["boxes left out"] += len(annotations)
        return None
    done["sizes corrected"] += said != picture.size
    mended = []
    for annotation in annotations:
        box = mend_box(annotation.get("bbox"), frame, picture)
        if box is None:
            done["boxes left out"] += 1
        elif box == annotation["bbox"]:
            mended.append(clean(annotation))
        else:
            done["boxes clipped" if frame == picture.size else "boxes moved into the frame of their picture"] += 1
            mended.append(clean({**annotation, "bbox": box, "area": box[2] * box[3]}))
    return {**image, "width": width, "height": height}, mended


def mend_box(box: Any, frame: tuple[float, float], picture: Picture) -> list[float] | None:
    """An (x, y, width, height) box of a frame of (width, height), in that of its picture; None if nothing is inside."""
    assert picture.size is not None
    if box_problem(box, frame) not in (None, "box reaching out of the picture"):
        return None
    if box_problem(box, frame) is None and frame == picture.size:
        return list(box)
    x, y, width, height = box
    corners = (max(x, 0), max(y, 0), min(x + width, frame[0]), min(y + height, frame[1]))
    shown = to_shown_frame(corners, frame, picture.size, picture.orientation)
    assert shown is not None
    return [shown[0], shown[1], shown[2] - shown[0], shown[3] - shown[1]]


def clean(annotation: Entry) -> Entry:
    """A copy without keys that may be left out and hold nothing usable."""
    rules = OPTIONAL["annotations"]
    return {k: v for k, v in annotation.items() if k not in rules or (v is not None and rules[k][0](v))}


def number_annotations(annotations: list[Entry], done: Counter[str]) -> None:
    """Give all ids anew, in place, if one is repeated or no positive number."""
    ids: list[Any] = [annotation.get("id") for annotation in annotations]
    if all(is_whole(x) and x > 0 for x in ids) and len(set(ids)) == len(ids):
        return
    done["annotation ids given anew"] = len(ids)
    for number, annotation in enumerate(annotations, 1):
        annotation["id"] = number
