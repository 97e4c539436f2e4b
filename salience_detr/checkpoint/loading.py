"""Weights loaded into a model without silent gaps."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from salience_detr.checkpoint.backbone_conversion import convert_backbone, describe, find_format
from salience_detr.checkpoint.class_names import classes_in, presumed_classes
from salience_detr.checkpoint.class_transfer import (
    ClassRows,
    check_names,
    check_numbers,
    rows_to_predict,
    rows_to_train,
)
from salience_detr.checkpoint.errors import CheckpointError
from salience_detr.checkpoint.files import find_state_dict, read_checkpoint
from salience_detr.checkpoint.reference_conversion import (
    convert_reference_classes,
    is_reference_checkpoint,
)
from salience_detr.checkpoint.score_thresholds import ScoreThresholds, thresholds_in
from salience_detr.checkpoint.validation import load_state_dict_strictly
from salience_detr.checkpoint.variant_parts import TRAINING_PARTS, VARIANT_PARTS, fit_parts
from salience_detr.data.classes import ClassList
from salience_detr.utils.errors import shorten

logger = logging.getLogger(__name__)

# Norms of a backbone's output, which its classifier does not have.
OUTPUT_NORMS = re.compile(r"output_norms\.|norm\d\.")


def read_classes(path: str | Path) -> ClassList | None:
    """Return the classes that a checkpoint names, None if it does not.

    Raises:
        CheckpointError: if the file cannot be read.
    """
    return classes_in(read_checkpoint(path), path)


def read_thresholds(path: str | Path) -> ScoreThresholds | None:
    """Return the score thresholds that a checkpoint holds, None if it holds none.

    Raises:
        CheckpointError: if the file cannot be read.
    """
    return thresholds_in(read_checkpoint(path), path)


def load_weights(
    model: nn.Module,
    path: str | Path,
    *,
    classes: ClassList | None = None,
    ignore_class_names: bool = False,
) -> ClassList | None:
    """Load all weights of a model from a file: nothing may be missing, left over or of other shape.

    Parts that training alone uses are no concern of it (see :mod:`variant_parts`).

    The file may be of this project or of the published implementation. The latter is converted,
    and its COCO category ids become contiguous classes. Where the names of the classes are known,
    their rows are put into the order of the data set (see :func:`rows_to_predict`).

    Args:
        model: the model.
        path: path or URL of the file.
        classes: classes of the data set to predict on, None if they are unknown.
        ignore_class_names: take the rows in their order, whatever their names are.

    Returns:
        The classes of the model's rows, or None if nothing names them.

    Raises:
        CheckpointError: if the file does not fit (the message lists the names), if it is of another
            model (the message says which), or if it lacks classes of the data set.
    """
    content = read_checkpoint(path)
    file_state = find_state_dict(content, path)

    detector = find_detector(model, file_state)
    if detector is None:
        remedy = "to detect something, the weights of a trained Salience DETR are needed"
        if find_format(file_state):
            remedy = f"which is the backbone only; training can start from it, but {remedy}"

        looks = describe(file_state)
        raise CheckpointError(f"{path} is of another model: it looks like {looks}; {remedy}")

    state, known_classes = detector
    rows = class_rows(model, state)
    file_classes = name_classes(content, rows, known_classes, classes, path)
    row_classes: ClassList | None
    if ignore_class_names and file_classes is not None:
        check_numbers(rows, classes, str(path))
        row_classes = complete_ids(file_classes, classes)
    else:
        state, row_classes = rows_to_predict(rows, file_classes, classes, source=str(path))

    state = fit_parts(state, model.state_dict(), TRAINING_PARTS, source=str(path))
    load_state_dict_strictly(model, state, source=str(path))
    logger.info("loaded all weights from %s", path)
    return row_classes


def start_from(model: nn.Module, path: str | Path, *, classes: ClassList | None = None) -> None:
    """Load the weights that a training starts from.

    All weights of a detector must fit, but for the class rows: those of the classes of the data set
    are kept, by name, and the others stay random (see :func:`rows_to_train`). Parts of variants
    that the file lacks stay random, and those that the model lacks are left out. The weights of a
    classifier are loaded into the backbone.

    Args:
        model: the model.
        path: path or URL of the file.
        classes: classes of the data set to train on, None if they are unknown.

    Raises:
        CheckpointError: see :func:`load_weights`.
    """
    content = read_checkpoint(path)
    file_state = find_state_dict(content, path)

    detector = find_detector(model, file_state)
    if detector is None:
        load_backbone(model, file_state, source=str(path))
        return

    state, known_classes = detector
    rows = class_rows(model, state)
    file_classes = name_classes(content, rows, known_classes, classes, path)
    state = rows_to_train(rows, file_classes, classes, source=str(path))

    own = model.state_dict()
    state = fit_parts(state, own, VARIANT_PARTS, source=str(path), level=logging.WARNING)
    load_state_dict_strictly(model, state, source=str(path))
    logger.info("loaded all weights from %s", path)


def find_detector(
    model: nn.Module, state: Mapping[str, Tensor]
) -> tuple[Mapping[str, Tensor], ClassList | None] | None:
    """Return the state dict of a detector in this project's names, or None if it is none.

    With it come the classes of its rows, where a published checkpoint tells them.
    """
    if is_reference_checkpoint(state):
        return convert_reference_classes(state, num_classes=getattr(model, "num_classes", None))

    is_known = model.state_dict().keys() & state.keys()
    return (state, None) if is_known else None


def class_rows(model: nn.Module, state: Mapping[str, Tensor]) -> ClassRows:
    """Return the tensors with a row for each class, of a file and of the model."""
    return ClassRows(state, model.state_dict(), getattr(model, "num_classes", None))


def name_classes(
    content: Mapping[str, object],
    rows: ClassRows,
    known: ClassList | None,
    data: ClassList | None,
    path: str | Path,
) -> ClassList | None:
    """Return the classes of a file's rows: as it names them, or COCO's if they may be COCO's.

    Raises:
        CheckpointError: the file does not have as many names as rows.
    """
    classes = classes_in(content, path)
    if classes is None and known is not None:
        classes = known
        logger.warning("%s is of the published implementation, for %s", path, classes)
    if classes is None and rows.names:
        classes = presumed_classes(rows.num_file, data)
        if classes is not None:
            logger.warning(
                "%s does not name its %d classes; they are taken for %s",
                path,
                len(classes),
                classes,
            )

    check_names(rows, classes, str(path))
    return classes


def complete_ids(file: ClassList, data: ClassList | None) -> ClassList:
    """Return the classes of a file with the category ids of a data set of the same names.

    Files of earlier versions have no ids.
    """
    if data is not None and file.category_ids is None and file.names == data.names:
        return data
    return file


def load_backbone(model: nn.Module, state: Mapping[str, Tensor], *, source: str) -> None:
    """Load a published classifier into the backbone; norms that only detectors have stay.

    Raises:
        CheckpointError: if the file is of another family, or if it does not fit.
    """
    backbone = model.get_submodule("backbone")
    own = backbone.state_dict()
    try:
        converted, left_out = convert_backbone(state, own.keys())
    except CheckpointError as error:
        raise CheckpointError(f"{source}: {error}") from error

    norms = {name: tensor for name, tensor in own.items() if OUTPUT_NORMS.match(name)}
    load_state_dict_strictly(backbone, {**norms, **converted}, source=f"{source} (backbone)")

    logger.info(
        "loaded the backbone from %s (%s): %d tensors; left out: %s",
        source,
        describe(state),
        len(converted),
        shorten(left_out) or "none",
    )
