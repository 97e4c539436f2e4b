"""Paths of published weights, which detectron2's path manager downloads.

``torchvision://ResNet50_Weights.IMAGENET1K_V2`` or ``torchvision://resnet50-11ad3fa6.pth``, and
``timm://convnext_large.fb_in1k``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import timm
import torchvision
from detectron2.utils.file_io import PathManager
from huggingface_hub import hf_hub_url
from iopath.common.file_io import PathHandler

from salience_detr.checkpoint.errors import CheckpointError


class NamedWeightsHandler(PathHandler):
    """Handler of paths ``{prefix}{name}`` of weights that a library publishes under a name.

    Files are downloaded into the path manager's cache when they are first asked for.

    Args:
        prefix: prefix of the paths.
        find_url: returns the URL of the weights of a name.
    """

    def __init__(self, prefix: str, find_url: Callable[[str], str]) -> None:
        super().__init__()
        self.prefix = prefix
        self.find_url = find_url

    def _get_supported_prefixes(self) -> list[str]:
        return [self.prefix]

    def _get_local_path(self, path: str, force: bool = False, **kwargs: Any) -> str:
        url = self.find_url(path.removeprefix(self.prefix))
        return PathManager.get_local_path(url, force=force)

    def _open(self, path: str, mode: str = "r", buffering: int = -1, **kwargs: Any) -> Any:
        return PathManager.open(self._get_local_path(path), mode)


def timm_weights_url(name: str) -> str:
    """Return the URL of timm's weights ``model.tag``, or ``model`` for its default.

    Raises:
        CheckpointError: if timm has no such weights.
    """
    try:
        known = timm.get_pretrained_cfg(name)
    except RuntimeError:  # the model exists, the tag does not
        known = None

    if known and known.hf_hub_id:
        return hf_hub_url(known.hf_hub_id, known.hf_hub_filename or "model.safetensors")
    if known and known.url:
        return str(known.url)

    similar = timm.list_pretrained(f"*{name.split('.')[0]}*")[:8]
    hint = "use a name such as convnext_large.fb_in1k"
    if similar:
        hint = f"it has {', '.join(similar)}"
    raise CheckpointError(f"timm has no weights {name!r}; {hint}")


def torchvision_weights_url(name: str) -> str:
    """Return the URL of torchvision's weights of an enum's name, or of a file's name.

    Raises:
        CheckpointError: if torchvision has no such weights.
    """
    models = torchvision.models
    for model in models.list_models(module=models):
        for weights in models.get_model_weights(model):
            if name in (str(weights), weights.url.rsplit("/", 1)[-1]):
                return weights.url
    raise CheckpointError(
        f"torchvision has no weights {name!r}; use a name such as ResNet50_Weights.IMAGENET1K_V2"
    )


for handler in (
    NamedWeightsHandler("torchvision://", torchvision_weights_url),
    NamedWeightsHandler("timm://", timm_weights_url),
):
    PathManager.register_handler(handler, allow_override=True)
