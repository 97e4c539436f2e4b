"""Names and category ids of the classes of a checkpoint: how files hold and miss them."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path

from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from torch import Tensor

from salience_detr.checkpoint.errors import CheckpointError
from salience_detr.data.classes import ClassList, simplify
from salience_detr.data.coco_format import is_id
from salience_detr.utils.files import parse_json

# Keys of a checkpoint beside the weights; in a .safetensors file they are JSON in its metadata.
NAMES_KEY = "class_names"
IDS_KEY = "category_ids"
# Score thresholds of the classes, see score_thresholds.py.
THRESHOLDS_KEY = "score_thresholds"
ENTRY_KEYS = (NAMES_KEY, IDS_KEY, THRESHOLDS_KEY)

# Names of COCO's 80 classes by their id, in the order of converted checkpoints.
COCO_CLASSES = {x["id"]: str(x["name"]) for x in COCO_CATEGORIES if x["isthing"]}
# The published heads have a row for each id up to the largest one.
NUM_COCO_ROWS = max(COCO_CLASSES) + 1


def to_entries(classes: ClassList | None) -> dict[str, list[object]]:
    """Return the entries of a checkpoint that name its classes; none if the names are unknown."""
    if classes is None:
        return {}

    entries: dict[str, list[object]] = {NAMES_KEY: list(classes.names)}
    if classes.category_ids is not None:
        entries[IDS_KEY] = list(classes.category_ids)
    return entries


def to_metadata(classes: ClassList | None) -> dict[str, str]:
    """Return the metadata of a .safetensors file that name its classes."""
    return {key: json.dumps(value) for key, value in to_entries(classes).items()}


def from_metadata(metadata: Mapping[str, str]) -> dict[str, object]:
    """Return the entries of a checkpoint that the metadata of a .safetensors file hold.

    They are the names and ids of the classes, and their score thresholds.

    Raises:
        CheckpointError: an entry is not valid JSON.
    """
    entries = {}
    for key in ENTRY_KEYS:
        if key not in metadata:
            continue
        try:
            entries[key] = parse_json(metadata[key])
        except ValueError as error:
            raise CheckpointError(
                f"the metadata {key!r} is not valid JSON ({error}); write the file again with "
                "right entries"
            ) from error
    return entries


def without_entries(content: Mapping[str, object]) -> dict[str, object]:
    """Return the content of a checkpoint without the entries on its classes."""
    return {key: value for key, value in content.items() if key not in ENTRY_KEYS}


def classes_in(content: Mapping[str, object], path: str | Path) -> ClassList | None:
    """Return the classes that a checkpoint names, or None if it does not name them.

    Raises:
        CheckpointError: an entry is of another kind, or the two differ in length.
    """
    names = content.get(NAMES_KEY)
    if names is None:
        return None

    remedy = "save it again with its state dict alone, or with right entries"
    if not isinstance(names, list | tuple) or not all(isinstance(x, str) for x in names):
        raise CheckpointError(f"{path}: {NAMES_KEY!r} is {names!r:.80}, no list of texts; {remedy}")
    if not names:
        return None

    ids = content.get(IDS_KEY)
    if ids is None:
        return ClassList(tuple(names))

    if not isinstance(ids, list | tuple) or not all(map(is_id, ids)):
        raise CheckpointError(
            f"{path}: {IDS_KEY!r} is {ids!r:.80}, no list of whole numbers; {remedy}"
        )
    if len(ids) != len(names) or len(set(ids)) != len(ids):
        raise CheckpointError(
            f"{path} has {len(names)} class names and {len(set(ids))} different category ids; "
            f"{remedy}"
        )
    return ClassList(tuple(names), tuple(ids))


def name_rows(name_of: Mapping[int, str], num_rows: int) -> ClassList:
    """Return the classes of rows whose index is a category id; unused ones have it for a name."""
    names = tuple(name_of.get(row, str(row)) for row in range(num_rows))
    return ClassList(names, tuple(range(num_rows)))


def presumed_classes(num_rows: int, data: ClassList | None) -> ClassList | None:
    """Return COCO's classes for 80 or 91 nameless rows, as of a converted checkpoint, else None.

    Args:
        num_rows: number of class rows.
        data: classes of the data set, None if they are unknown. If COCO has none of their names, or
            not all of as many, the rows are taken for other classes.
    """
    coco = ClassList(tuple(COCO_CLASSES.values()), tuple(COCO_CLASSES))
    if num_rows not in (len(coco), NUM_COCO_ROWS):
        return None

    if data is not None:
        coco_names = set(map(simplify, coco.names))
        is_shared = [simplify(name) in coco_names for name in data.names]
        if not any(is_shared) or (len(data) == num_rows and not all(is_shared)):
            return None
    return coco if num_rows == len(coco) else name_rows(COCO_CLASSES, num_rows)


def published_names(state: Mapping[str, Tensor]) -> dict[int, str]:
    """Return the class names in a checkpoint of the published implementation by category id.

    Its training saves the names of all ids up to the largest one as code points, each followed by
    -1; ids without a category are called "none". The released files have no such entry: their many
    rows are COCO's.
    """
    num_rows = state["transformer.encoder_class_head.bias"].numel()
    codes = state.get("_classes_")
    if not isinstance(codes, Tensor) or -1 not in codes:
        return COCO_CLASSES if num_rows >= NUM_COCO_ROWS else {}

    names = [""]
    for code in codes.long().clamp(-1, sys.maxunicode).flatten().tolist():
        if code == -1:
            names.append("")
        else:
            names[-1] += chr(code)
    return {row: name for row, name in enumerate(names[:-1][:num_rows]) if name != "none"}
