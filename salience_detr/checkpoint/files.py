"""Checkpoint files. They are read weights-only, so that no code in them is ever run."""

from __future__ import annotations

import logging
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from salience_detr.checkpoint.class_names import (
    from_metadata,
    to_entries,
    to_metadata,
    without_entries,
)
from salience_detr.checkpoint.errors import CheckpointError
from salience_detr.checkpoint.origin import Origin, origin_metadata
from salience_detr.checkpoint.paths import local_path, remedy_of_damage
from salience_detr.checkpoint.score_thresholds import (
    ScoreThresholds,
    thresholds_to_entries,
    thresholds_to_metadata,
)
from salience_detr.checkpoint.validation import check_tensors
from salience_detr.data.classes import ClassList
from salience_detr.utils.files import written_whole

logger = logging.getLogger(__name__)

# Under these keys state dicts are wrapped. The EMA of the weights is preferred.
STATE_DICT_KEYS = ("ema", "model", "state_dict", "model_ema")


def read_checkpoint(path: str | Path) -> dict[str, object]:
    """Read a .safetensors, .pth or .pt file to the CPU.

    The names of the classes in the metadata of a .safetensors file are entries as in a .pth file,
    beside its tensors under the key "model". Without them, its tensors are the content.

    Args:
        path: path of the file, or what else :func:`local_path` knows.

    Raises:
        CheckpointError: if the file is missing, truncated or not a checkpoint, or if it holds more
            than tensors and plain containers.
    """
    local = local_path(path)
    try:
        if local.endswith(".safetensors"):
            return read_safetensors(local)
        content = torch.load(local, map_location="cpu", weights_only=True)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    except Exception as error:  # a damaged file can fail in any way
        if isinstance(error, pickle.UnpicklingError) and zipfile.is_zipfile(local):
            raise CheckpointError(
                f"{path} holds Python objects besides tensors and is not loaded, since reading it "
                "could run code; save its state dict alone and load that"
            ) from error

        raise CheckpointError(
            f"{path} cannot be read, it is truncated or not a checkpoint; "
            f"{remedy_of_damage(path, local)} ({type(error).__name__})"
        ) from error

    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not a state dict")
    return content


def read_safetensors(path: str) -> dict[str, object]:
    """Read a .safetensors file, see :func:`read_checkpoint`."""
    tensors = load_file(path)
    with safe_open(path, framework="pt") as file:
        entries = from_metadata(file.metadata() or {})
    if entries:
        return {"model": tensors, **entries}
    return dict(tensors)


def find_state_dict(content: Mapping[str, object], path: str | Path) -> Mapping[str, Tensor]:
    """Return the state dict of a model in a checkpoint, which others wrap in various ways.

    Raises:
        CheckpointError: if there is none, or if it holds more than dense tensors by name.
    """
    key = next((key for key in STATE_DICT_KEYS if key in content), None)
    state = content[key] if key else without_entries(content)
    if not isinstance(state, Mapping) or not state:
        raise CheckpointError(f"{path} holds no state dict of a model")
    check_tensors(state, source=str(path))

    if key == "ema":
        remedy = "tools/convert_checkpoint.py --raw keeps the trained weights instead"
        logger.info("%s: taking the EMA of the weights; %s", path, remedy)

    # DistributedDataParallel puts all names below "module".
    if all(name.startswith("module.") for name in state):
        return {name.removeprefix("module."): value for name, value in state.items()}
    return state


def save_weights(
    state: Mapping[str, Tensor],
    path: Path,
    *,
    classes: ClassList | None = None,
    thresholds: ScoreThresholds | None = None,
    origin: Origin | None = None,
) -> None:
    """Write a state dict as .safetensors, or as .pth under the key "model", whole or not at all.

    Args:
        state: the tensors by name.
        path: path of the file.
        classes: classes of the rows, written beside the tensors; None if they are unknown.
        thresholds: their score thresholds; None if there are none.
        origin: config of the model, for the metadata of .safetensors; None if it is unknown.

    Raises:
        CheckpointError: if the file cannot be written.
    """
    try:
        with written_whole(path) as temporary:
            if path.suffix == ".safetensors":
                # Tensors that share memory cannot be written.
                copies = {name: x.detach().contiguous().clone() for name, x in state.items()}
                metadata = to_metadata(classes) | thresholds_to_metadata(thresholds)
                write_safetensors(copies, temporary, metadata | origin_metadata(origin))
            else:
                entries = to_entries(classes) | thresholds_to_entries(thresholds)
                torch.save({"model": dict(state), **entries}, temporary)
    except (OSError, RuntimeError, SafetensorError) as error:  # a full disk is any of them
        raise CheckpointError(f"cannot write {path}: {error}") from error


def write_safetensors(state: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str]) -> None:
    """Write tensors and metadata into a file that is there; who may read it stays."""
    mode = path.stat().st_mode
    save_file(dict(state), path, metadata=dict(metadata))
    path.chmod(mode)  # safetensors lets nobody else read its files


def store_thresholds(path: Path, thresholds: ScoreThresholds) -> None:
    """Write score thresholds into a checkpoint; all else in it stays as it is.

    Args:
        path: a .safetensors file, or one of torch.save, such as a run's ``model_best.pth``.
        thresholds: they replace earlier ones.

    Raises:
        CheckpointError: if the file cannot be read or written; it is as before then.
    """
    content = read_checkpoint(path)
    try:
        with written_whole(path) as temporary:
            if path.suffix == ".safetensors":
                with safe_open(path, framework="pt") as file:
                    metadata = file.metadata() or {}
                metadata |= thresholds_to_metadata(thresholds)
                write_safetensors(load_file(path), temporary, metadata)
            else:
                torch.save({**content, **thresholds_to_entries(thresholds)}, temporary)
    except (OSError, RuntimeError, SafetensorError) as error:  # a full disk is any of them
        raise CheckpointError(f"cannot write {path}: {error}") from error
