"""Reading checkpoint files, and loading them into a model without silent gaps.

Files are read weights-only: no code in them is ever run.
"""

from __future__ import annotations

import logging
import pickle
import re
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.utils.file_io import PathManager
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from salience_detr.checkpoint.backbone_conversion import describe, find_format, shorten
from salience_detr.checkpoint.class_transfer import transfer_classes
from salience_detr.checkpoint.reference_conversion import (
    COCO_CATEGORY_IDS,
    CheckpointError,
    convert_backbone,
    convert_reference_checkpoint,
    is_reference_checkpoint,
)
from salience_detr.utils.files import written_whole

logger = logging.getLogger(__name__)

# Norms of a backbone's maps, which its classifier does not have.
ADDED_NORMS = re.compile(r"output_norms\.|norm\d\.")


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """The content of a .safetensors, .pth or .pt file, on the CPU; ``path`` may be a URL of the path manager.

    Raises:
        CheckpointError: the file is missing, truncated, not a checkpoint, or holds more than plain tensors and
            containers.
    """
    try:
        local = PathManager.get_local_path(str(path))
    except OSError as error:
        raise CheckpointError(f"cannot get the checkpoint {path}: {error}") from error
    if not Path(local).is_file():
        raise CheckpointError(f"there is no checkpoint file {path}")
    try:
        if local.endswith(".safetensors"):
            return load_file(local)
        content = torch.load(local, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if zipfile.is_zipfile(local):
            raise CheckpointError(
                f"{path} holds Python objects besides tensors and is not loaded, since reading it could run code; "
                "save its state dict alone and load that"
            ) from error
        raise CheckpointError(
            f"{path} is not a checkpoint, or it is truncated; get it again"
        ) from error
    except Exception as error:  # a damaged file can fail in any way
        raise CheckpointError(
            f"{path} cannot be read, it is truncated or not a checkpoint; get it again ({type(error).__name__})"
        ) from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not a state dict")
    return content


def save_weights(state: Mapping[str, Tensor], path: Path) -> None:
    """Write a state dict as .safetensors, or as .pth under the key "model", whole or not at all.

    Raises:
        CheckpointError: the file cannot be written.
    """
    try:
        with written_whole(path) as temporary:
            if path.suffix == ".safetensors":
                save_file(
                    {name: x.detach().contiguous().clone() for name, x in state.items()}, temporary
                )
            else:
                torch.save({"model": dict(state)}, temporary)
    except (OSError, RuntimeError, SafetensorError) as error:  # a full disk is any of them
        raise CheckpointError(f"cannot write {path}: {error}") from error


def load_weights(model: nn.Module, path: str | Path) -> list[str]:
    """Fill the model from a file; every parameter must be there with its shape, and nothing may be left over.

    The file may be one of this project's, or one of the published implementation's (converted on the way, its
    COCO category ids becoming contiguous).

    Returns:
        The names of the classes, if the file tells them, else nothing.

    Raises:
        CheckpointError: what is missing, left over or of another shape, or what the file is instead.
    """
    content = read_checkpoint(path)
    file = state_dict_of(content, path)
    state = detector_state(model, file)
    if state is None:
        remedy = "to detect something, the weights of a trained Salience DETR are needed"
        if find_format(file):
            remedy = f"which is the backbone only; training can start from it, but {remedy}"
        raise CheckpointError(
            f"{path} is of another model: it looks like {describe(file)}; {remedy}"
        )
    load_state_dict_strictly(model, state, source=str(path))
    logger.info("loaded all weights from %s", path)
    return [str(name) for name in content.get("class_names", ())]


def start_from(
    model: nn.Module,
    path: str | Path,
    *,
    class_names: Sequence[str] | None = None,
    match_classes: bool = False,
) -> None:
    """Fill a model that is going to be trained.

    Of a detector all must fit but the class rows: those of another number of classes start afresh, and with
    ``match_classes`` those of classes that have the same name there are kept. Other files fill the backbone.

    Args:
        class_names: of the data set to train on.

    Raises:
        CheckpointError: see :func:`load_weights`.
    """
    content = read_checkpoint(path)
    file = state_dict_of(content, path)
    state = detector_state(model, file)
    if state is None:
        load_backbone(model, file, source=str(path))
        return
    state = transfer_classes(
        state,
        model.state_dict(),
        source=str(path),
        their_classes=content.get("class_names"),
        our_classes=class_names,
        match=match_classes,
    )
    load_state_dict_strictly(model, state, source=str(path))
    logger.info("loaded all weights from %s", path)


def state_dict_of(content: Mapping[str, Any], path: str | Path) -> Mapping[str, Any]:
    """The tensors in a checkpoint, which others wrap in various ways; an average of the weights is preferred.

    Raises:
        CheckpointError: there are none.
    """
    key = next((key for key in ("ema", "model", "state_dict", "model_ema") if key in content), None)
    if key == "ema":
        logger.info(
            "%s: taking the average of the weights (ema); tools/strip_checkpoint.py --raw keeps the others",
            path,
        )
    state = content if key is None else content[key]
    if not isinstance(state, Mapping) or not state:
        raise CheckpointError(f"{path} holds no state dict of a model")
    if all(str(name).startswith("module.") for name in state):  # of a DistributedDataParallel
        return {name.removeprefix("module."): value for name, value in state.items()}
    return state


def detector_state(model: nn.Module, state: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The state dict of a whole detector in this project's names; None if it is of something else."""
    if is_reference_checkpoint(state):
        num_rows = len(state["transformer.encoder_class_head.bias"])
        # Of other data than COCO.
        keep_all = num_rows == getattr(model, "num_classes", None) or num_rows <= max(
            COCO_CATEGORY_IDS
        )
        return convert_reference_checkpoint(
            state, category_ids=None if keep_all else COCO_CATEGORY_IDS
        )
    return state if model.state_dict().keys() & state.keys() else None


def load_backbone(model: nn.Module, state: Mapping[str, Any], *, source: str) -> None:
    """Fill the backbone from a published classifier's state dict; norms that only detectors have stay as they are.

    Raises:
        CheckpointError: the file is of another family, or does not fit.
    """
    backbone = getattr(model, "backbone", None)
    if backbone is None:
        raise CheckpointError(
            f"{source} looks like {describe(state)}, but {type(model).__name__} has no backbone"
        )
    own = backbone.state_dict()
    try:
        converted, left_out = convert_backbone(state, own.keys())
    except CheckpointError as error:
        raise CheckpointError(f"{source} {error}") from error
    added = {name: tensor for name, tensor in own.items() if ADDED_NORMS.match(name)}
    load_state_dict_strictly(backbone, {**added, **converted}, source=f"{source} (backbone)")
    logger.info(
        "loaded the backbone from %s (%s): %d tensors; left out: %s",
        source,
        describe(state),
        len(converted),
        shorten(left_out) or "none",
    )


def load_state_dict_strictly(model: nn.Module, state: Mapping[str, Any], *, source: str) -> None:
    """``model.load_state_dict``, with one error that says what does not fit; then nothing is loaded.

    Raises:
        CheckpointError: see :func:`load_weights`.
    """
    own = model.state_dict()
    wrong_type = [name for name, value in state.items() if not isinstance(value, Tensor)]
    problems = _list("missing from the file", own.keys() - state.keys())
    problems += _list("in the file but not in the model", state.keys() - own.keys())
    problems += _list("not a tensor", wrong_type)
    shapes = {
        name: (tuple(state[name].shape), tuple(own[name].shape))
        for name in own.keys() & state.keys() - set(wrong_type)
        if state[name].shape != own[name].shape
    }
    problems += _list(
        "of another shape",
        (
            f"{name}: {theirs} in the file, {ours} in the model"
            for name, (theirs, ours) in shapes.items()
        ),
    )
    if not problems:
        model.load_state_dict(dict(state))
        return
    hint = _class_count_hint(shapes)
    if not own.keys() & state.keys():
        hint = "it looks like a checkpoint of another model"
    raise CheckpointError(
        "; ".join(
            [f"{source} does not fit {type(model).__name__}", *filter(None, [hint]), *problems]
        )
    )


def _class_count_hint(shapes: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]) -> str:
    theirs, ours = shapes.get("query_selection.class_head.bias", ((), ()))
    if not theirs or not ours:
        return ""
    return f"the file has {theirs[0]} classes, the model {ours[0]}: set model.num_classes={theirs[0]} to load it"


def _list(what: str, names: Iterable[str]) -> list[str]:
    found = sorted(names)
    return [f"{len(found)} {what}: {shorten(found)}"] if found else []
