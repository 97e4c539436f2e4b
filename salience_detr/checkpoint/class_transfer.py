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


def transfer_classes(
    state: Mapping[str, Tensor],
    own: Mapping[str, Tensor],
    *,
    source: str,
    file_classes: Sequence[str] | None = None,
    model_classes: Sequence[str] | None = None,
    match: bool = False,
) -> dict[str, Tensor]:
    """Fit the tensors with a row for each class to a model with other classes.

    All other tensors stay as they are.

    Args:
        state: state dict of the file, in this project's names.
        own: state dict of the model. Its rows are the random ones to start from.
        source: name of the file in messages.
        file_classes: names of the file's classes, in order.
        model_classes: names of the classes of the data set to train on.
        match: keep the rows of classes that have the same name, ignoring case. Otherwise rows are
            kept if the numbers of classes are equal.

    Raises:
        CheckpointError: if matching was asked for, and the names are not known.
    """
    names = [name for name in state if CLASS_ROWS.fullmatch(name) and name in own]
    kept_rows: dict[int, int] = {}
    if match:
        num_file_classes = len(state[names[0]]) if names else 0
        kept_rows = matching_rows(
            file_classes, model_classes, num_file_classes=num_file_classes, source=source
        )
    else:
        names = [name for name in names if state[name].shape != own[name].shape]
    if not names:
        return dict(state)

    # Tensors that differ in more than their rows are left for the strict loading to report.
    adapted = {}
    for name in names:
        if state[name].shape[1:] == own[name].shape[1:]:
            adapted[name] = own[name].clone()
            for own_row, file_row in kept_rows.items():
                adapted[name][own_row] = state[name][file_row]

    numbers = f"{len(state[names[0]])} classes in the file, {len(own[names[0]])} in the model"
    if kept_rows and model_classes:
        kept = shorten([model_classes[row] for row in kept_rows])
        outcome = f"kept the rows of {len(kept_rows)} with the same name: {kept}"
    else:
        outcome = f"these start with random weights: {', '.join(sorted(adapted))}"
    logger.info("%s: %s; %s", source, numbers, outcome)
    return {**state, **adapted}


def matching_rows(
    file_classes: Sequence[str] | None,
    model_classes: Sequence[str] | None,
    *,
    num_file_classes: int,
    source: str,
) -> dict[int, int]:
    """Return the row in the file of each of the model's classes that has the same name there.

    Raises:
        CheckpointError: if the names of one side are not known.
    """
    coco = coco_classes()
    if file_classes is None and num_file_classes == len(coco):
        file_classes = coco
    if file_classes is None or len(file_classes) != num_file_classes:
        raise CheckpointError(
            f"{source} does not say what its {num_file_classes} classes are called; "
            "train without train.match_classes"
        )
    if not model_classes:
        raise CheckpointError(
            "train.match_classes: the training data set does not say what its classes are called"
        )

    file_rows = {name.casefold(): row for row, name in enumerate(file_classes)}
    rows = {}
    for row, name in enumerate(model_classes):
        if name.casefold() in file_rows:
            rows[row] = file_rows[name.casefold()]
    return rows


def coco_classes() -> list[str]:
    """Return the names of COCO's 80 classes in detectron2's order, as converted checkpoints."""
    return [category["name"] for category in COCO_CATEGORIES if category["isthing"]]
