"""Class rows of a model that starts from the weights of a model with other classes."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence

from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from torch import Tensor

from salience_detr.checkpoint.errors import CheckpointError, shorten

logger = logging.getLogger(__name__)

# Tensors with a row for each class.
CLASS_ROWS = re.compile(
    r"query_selection\.class_head\..*|decoder\.class_heads\..*|denoising\.label_encoder\.weight"
)

# COCO's 80 classes in detectron2's order, which is that of converted checkpoints.
COCO_CLASSES = [category["name"] for category in COCO_CATEGORIES if category["isthing"]]


def transfer_classes(
    state: Mapping[str, Tensor],
    own: Mapping[str, Tensor],
    *,
    source: str,
    file_classes: Sequence[str] | None,
    model_classes: Sequence[str],
    match: bool,
) -> dict[str, Tensor]:
    """Fit the tensors with a row for each class to a model with other classes.

    All other tensors stay as they are.

    Args:
        state: state dict of the file, in this project's names.
        own: state dict of the model. Its rows are the random ones to start from.
        source: name of the file in messages.
        file_classes: names of the file's classes, in order; None if it does not say them.
        model_classes: names of the classes of the data set to train on.
        match: keep the rows of classes that have the same name, ignoring case. Otherwise rows are
            kept if the numbers of classes are equal.

    Raises:
        CheckpointError: if matching was asked for, and the names are not known.
    """
    # Tensors that differ in more than their rows are left for the strict loading to report.
    names = []
    for name in filter(CLASS_ROWS.fullmatch, sorted(state.keys() & own.keys())):
        if state[name].shape[1:] == own[name].shape[1:]:
            names.append(name)
    if not names:
        return dict(state)

    num_file_classes = len(state[names[0]])
    num_own_classes = len(own[names[0]])

    rows: dict[int, int] = {}
    if match:
        if file_classes is None and num_file_classes == len(COCO_CLASSES):
            file_classes = COCO_CLASSES
        if file_classes is None:
            raise CheckpointError(
                f"{source} does not say what its {num_file_classes} classes are called; "
                "train without train.match_classes"
            )

        rows = matching_rows(file_classes, model_classes)
    elif num_file_classes == num_own_classes:
        return dict(state)

    adapted = {name: own[name].clone() for name in names}
    for name, tensor in adapted.items():
        tensor[list(rows)] = state[name][list(rows.values())]

    outcome = f"these start with random weights: {', '.join(names)}"
    if rows:
        kept = shorten([model_classes[row] for row in rows])
        outcome = f"kept the rows of {len(rows)} with the same name: {kept}"

    numbers = f"{num_file_classes} classes in the file, {num_own_classes} in the model"
    logger.info("%s: %s; %s", source, numbers, outcome)
    return {**state, **adapted}


def matching_rows(file_classes: Sequence[str], model_classes: Sequence[str]) -> dict[int, int]:
    """Return the row in the file of each of the model's classes that has the same name there."""
    file_rows = {name.casefold(): row for row, name in enumerate(file_classes)}

    rows = {}
    for row, name in enumerate(model_classes):
        if name.casefold() in file_rows:
            rows[row] = file_rows[name.casefold()]
    return rows
