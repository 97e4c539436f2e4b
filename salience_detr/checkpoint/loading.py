"""Weights loaded into a model without silent gaps."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from salience_detr.checkpoint.backbone_conversion import convert_backbone, describe, find_format
from salience_detr.checkpoint.class_transfer import transfer_classes
from salience_detr.checkpoint.errors import CheckpointError, shorten
from salience_detr.checkpoint.files import find_state_dict, read_checkpoint
from salience_detr.checkpoint.reference_conversion import (
    COCO_CATEGORY_IDS,
    convert_reference_checkpoint,
    is_reference_checkpoint,
)
from salience_detr.checkpoint.validation import load_state_dict_strictly

logger = logging.getLogger(__name__)

# Norms of a backbone's output, which its classifier does not have.
OUTPUT_NORMS = re.compile(r"output_norms\.|norm\d\.")


def load_weights(model: nn.Module, path: str | Path) -> list[str]:
    """Load all weights of a model from a file: nothing may be missing, left over or of other shape.

    The file may be of this project or of the published implementation. The latter is converted,
    and its COCO category ids become contiguous classes.

    Returns:
        The names of the classes if the file has them, else an empty list.

    Raises:
        CheckpointError: if the file does not fit (the message lists the names), or if it is of
            another model (the message says which).
    """
    content = read_checkpoint(path)
    file_state = find_state_dict(content, path)

    state = detector_state(model, file_state)
    if state is None:
        remedy = "to detect something, the weights of a trained Salience DETR are needed"
        if find_format(file_state):
            remedy = f"which is the backbone only; training can start from it, but {remedy}"

        looks = describe(file_state)
        raise CheckpointError(f"{path} is of another model: it looks like {looks}; {remedy}")

    load_state_dict_strictly(model, state, source=str(path))
    logger.info("loaded all weights from %s", path)
    return [str(name) for name in content.get("class_names", ())]


def start_from(
    model: nn.Module,
    path: str | Path,
    *,
    class_names: Sequence[str] = (),
    match_classes: bool = False,
) -> None:
    """Load the weights that a training starts from.

    All weights of a detector must fit, but for the class rows: they stay random if the numbers of
    classes differ. The weights of a classifier are loaded into the backbone.

    Args:
        class_names: classes of the data set to train on.
        match_classes: keep the rows of the classes that have the same name in the file.

    Raises:
        CheckpointError: see :func:`load_weights`.
    """
    content = read_checkpoint(path)
    file_state = find_state_dict(content, path)

    state = detector_state(model, file_state)
    if state is None:
        load_backbone(model, file_state, source=str(path))
        return

    state = transfer_classes(
        state,
        model.state_dict(),
        source=str(path),
        file_classes=content.get("class_names"),
        model_classes=class_names,
        match=match_classes,
    )
    load_state_dict_strictly(model, state, source=str(path))
    logger.info("loaded all weights from %s", path)


def detector_state(model: nn.Module, state: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return the state dict of a detector in this project's names, or None if it is none."""
    if not is_reference_checkpoint(state):
        return state if model.state_dict().keys() & state.keys() else None

    # Heads with fewer rows than COCO's were trained on other data.
    num_rows = len(state["transformer.encoder_class_head.bias"])
    fits = num_rows == getattr(model, "num_classes", None)
    is_coco = not fits and num_rows > max(COCO_CATEGORY_IDS)
    return convert_reference_checkpoint(state, category_ids=COCO_CATEGORY_IDS if is_coco else None)


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
