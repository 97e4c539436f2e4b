"""Reading checkpoint files, and loading them into a model without silent gaps.

Files are read weights-only: no code in them is ever run.
"""

from __future__ import annotations

import logging
import pickle
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
import torchvision
from detectron2.utils.file_io import PathManager
from iopath.common.file_io import PathHandler
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from salience_detr.checkpoint_conversion import (
    COCO_CATEGORY_IDS,
    CheckpointError,
    convert_reference_checkpoint,
    convert_torchvision_resnet,
    is_reference_checkpoint,
    is_torchvision_resnet,
    shorten,
)
from salience_detr.files import written_whole

__all__ = [
    "COCO_CATEGORY_IDS",
    "CheckpointError",
    "convert_reference_checkpoint",
    "convert_torchvision_resnet",
    "load_state_dict_strictly",
    "load_weights",
    "read_checkpoint",
    "save_weights",
]

logger = logging.getLogger(__name__)


class TorchvisionWeightsHandler(PathHandler):
    """Paths ``torchvision://ResNet50_Weights.IMAGENET1K_V2`` or ``torchvision://resnet50-11ad3fa6.pth``.

    The file is downloaded into the path manager's cache when it is first asked for.
    """

    def _get_supported_prefixes(self) -> list[str]:
        return ["torchvision://"]

    def _get_local_path(self, path: str, force: bool = False, **kwargs: Any) -> str:
        return PathManager.get_local_path(torchvision_weights_url(path.removeprefix("torchvision://")), force=force)

    def _open(self, path: str, mode: str = "r", buffering: int = -1, **kwargs: Any) -> Any:
        return PathManager.open(self._get_local_path(path), mode)


def torchvision_weights_url(name: str) -> str:
    """Where torchvision publishes the weights of this enum name (``Model_Weights.NAME``) or file name.

    Raises:
        CheckpointError: torchvision has no such weights.
    """
    models = torchvision.models
    urls = {
        str(weights): weights.url
        for model in models.list_models(module=models)
        for weights in models.get_model_weights(model)
    }
    for weights_name, url in urls.items():
        if name in (weights_name, url.rsplit("/", 1)[-1]):
            return url
    raise CheckpointError(f"torchvision has no weights {name!r}; use a name such as ResNet50_Weights.IMAGENET1K_V2")


PathManager.register_handler(TorchvisionWeightsHandler(), allow_override=True)


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
        raise CheckpointError(f"{path} is not a checkpoint, or it is truncated; get it again") from error
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
                save_file({name: x.detach().contiguous().clone() for name, x in state.items()}, temporary)
            else:
                torch.save({"model": dict(state)}, temporary)
    except (OSError, RuntimeError, SafetensorError) as error:  # a full disk is any of them
        raise CheckpointError(f"cannot write {path}: {error}") from error


def load_weights(model: nn.Module, path: str | Path, *, allow_backbone: bool = False) -> None:
    """Fill the model from a file; every parameter must be there with its shape, and nothing may be left over.

    The file may be one of this project's, or one of the published implementation's (converted on the way, its
    COCO category ids becoming contiguous). With ``allow_backbone``, to start a training, it may also be a torchvision
    ResNet, which fills the backbone only.

    Raises:
        CheckpointError: what is missing, left over or of another shape.
    """
    content = read_checkpoint(path)
    state = content.get("model", content)
    if not isinstance(state, Mapping) or not state:
        raise CheckpointError(f"{path} holds no state dict of a model")
    if is_reference_checkpoint(state):
        num_rows = len(state["transformer.encoder_class_head.bias"])
        keep_all = num_rows == getattr(model, "num_classes", None)
        state = convert_reference_checkpoint(state, category_ids=None if keep_all else COCO_CATEGORY_IDS)
    elif is_torchvision_resnet(state):
        if not allow_backbone:
            raise CheckpointError(
                f"{path} holds a torchvision ResNet, which is the backbone only; training can start from it, but to "
                "detect something the weights of a trained model are needed"
            )
        backbone = getattr(model, "backbone", None)
        if backbone is None:
            raise CheckpointError(f"{path} holds a torchvision ResNet, but {type(model).__name__} has no backbone")
        load_state_dict_strictly(backbone, convert_torchvision_resnet(state), source=f"{path} (backbone)")
        logger.info("loaded the backbone from the torchvision ResNet %s", path)
        return
    load_state_dict_strictly(model, state, source=str(path))
    logger.info("loaded all weights from %s", path)


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
        (f"{name}: {theirs} in the file, {ours} in the model" for name, (theirs, ours) in shapes.items()),
    )
    if not problems:
        model.load_state_dict(dict(state))
        return
    hint = _class_count_hint(shapes)
    if not own.keys() & state.keys():
        hint = "it looks like a checkpoint of another model"
    raise CheckpointError(
        "; ".join([f"{source} does not fit {type(model).__name__}", *filter(None, [hint]), *problems])
    )


def _class_count_hint(shapes: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]) -> str:
    theirs, ours = shapes.get("query_selection.class_head.bias", ((), ()))
    if not theirs or not ours:
        return ""
    return f"the file has {theirs[0]} classes, the model {ours[0]}: set model.num_classes={theirs[0]} to load it"


def _list(what: str, names: Iterable[str]) -> list[str]:
    found = sorted(names)
    return [f"{len(found)} {what}: {shorten(found)}"] if found else []
