"""Weights of a model with other classes: which class rows are kept, and which start afresh."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from torch import Tensor

from salience_detr.checkpoint.backbone_conversion import shorten
from salience_detr.checkpoint.reference_conversion import CLASS_ROWS, CheckpointError

logger = logging.getLogger(__name__)


def transfer_classes(
    state: Mapping[str, Tensor],
    own: Mapping[str, Tensor],
    *,
    source: str,
    their_classes: Sequence[str] | None = None,
    our_classes: Sequence[str] | None = None,
    match: bool = False,
) -> dict[str, Tensor]:
    """Fit the tensors that have a row for each class to a model with other classes; all others stay as they are.

    Args:
        state: tensors of the file, in this project's names.
        own: those of the model; their rows are the random ones to start from.
        source: what the file is called in messages.
        their_classes: names of the classes of the file, in order.
        our_classes: those of the data set to train on.
        match: keep the rows of classes that have the same name, upper and lower case being equal.

    Raises:
        CheckpointError: matching was asked for, and the names are not known.
    """
    rows = [name for name in state if CLASS_ROWS.fullmatch(name) and name in own]
    other = [name for name in rows if state[name].shape != own[name].shape]
    kept: dict[int, int] = {}
    if match:
        kept = matching_rows(
            their_classes, our_classes, count=len(state[rows[0]]) if rows else 0, source=source
        )
        other = rows
    if not other:
        return dict(state)
    adapted = {
        name: own[name].clone() for name in other if state[name].shape[1:] == own[name].shape[1:]
    }
    for name, tensor in adapted.items():
        for ours, theirs in kept.items():
            tensor[ours] = state[name][theirs]
    shapes = f"{len(state[other[0]])} classes in the file, {len(own[other[0]])} in the model"
    if kept and our_classes:
        names = shorten([our_classes[i] for i in kept])
        logger.info(
            "%s: %s; kept the rows of %d with the same name: %s", source, shapes, len(kept), names
        )
    else:
        logger.info(
            "%s: %s; these start with random weights: %s",
            source,
            shapes,
            ", ".join(sorted(adapted)),
        )
    return {**state, **adapted}


def matching_rows(
    theirs: Sequence[str] | None, ours: Sequence[str] | None, *, count: int, source: str
) -> dict[int, int]:
    """Row of each of our classes that the file has, and its row there.

    Raises:
        CheckpointError: the names on one side are not known.
    """
    if theirs is None and count == len(coco_classes()):
        theirs = coco_classes()
    if theirs is None or len(theirs) != count:
        raise CheckpointError(
            f"{source} does not say what its {count} classes are called; train without train.match_classes"
        )
    if not ours:
        raise CheckpointError(
            "train.match_classes: the training data set does not say what its classes are called"
        )
    place = {name.casefold(): row for row, name in enumerate(theirs)}
    return {
        row: place[name.casefold()] for row, name in enumerate(ours) if name.casefold() in place
    }


def coco_classes() -> list[str]:
    """Names of COCO's 80 classes in detectron2's order, which is that of converted checkpoints."""
    return [category["name"] for category in COCO_CATEGORIES if category["isthing"]]
