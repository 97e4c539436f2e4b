"""Paths of published weights: the catalog that detectron2's path manager looks in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import timm
import torchvision
from detectron2.utils.file_io import PathManager
from huggingface_hub import hf_hub_url
from iopath.common.file_io import PathHandler

from salience_detr.checkpoint.reference_conversion import (
    CheckpointError,
)


class NamedWeightsHandler(PathHandler):
    """Paths of weights by the name under which a library publishes them: ``prefix://name``.

    The file is downloaded into the path manager's cache when it is first asked for.

    Args:
        prefix: of the paths.
        url_of: where the library publishes the weights of a name.
    """

    def __init__(self, prefix: str, url_of: Callable[[str], str]) -> None:
        super().__init__()
        self.prefix = prefix
        self.url_of = url_of

    def _get_supported_prefixes(self) -> list[str]:
        return [self.prefix]

    def _get_local_path(self, path: str, force: bool = False, **kwargs: Any) -> str:
        return PathManager.get_local_path(self.url_of(path.removeprefix(self.prefix)), force=force)

    def _open(self, path: str, mode: str = "r", buffering: int = -1, **kwargs: Any) -> Any:
        return PathManager.open(self._get_local_path(path), mode)


def timm_weights_url(name: str) -> str:
    """Where timm publishes the weights of this name (``model.tag``, or ``model`` for its default).

    Raises:
        CheckpointError: timm has no such weights.
    """
    try:
        known = timm.get_pretrained_cfg(name)
    except RuntimeError:  # the model exists, the tag does not
        known = None
    if known is None or not (known.hf_hub_id or known.url):
        near = timm.list_pretrained(f"*{name.split('.')[0]}*")[:8]
        hint = f"it has {', '.join(near)}" if near else "use a name such as convnext_large.fb_in1k"
        raise CheckpointError(f"timm has no weights {name!r}; {hint}")
    if known.hf_hub_id:
        return hf_hub_url(known.hf_hub_id, known.hf_hub_filename or "model.safetensors")
    return str(known.url)


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
    raise CheckpointError(
        f"torchvision has no weights {name!r}; use a name such as ResNet50_Weights.IMAGENET1K_V2"
    )


# torchvision://ResNet50_Weights.IMAGENET1K_V2 or torchvision://resnet50-11ad3fa6.pth; timm://convnext_large.fb_in1k
PathManager.register_handler(
    NamedWeightsHandler("torchvision://", torchvision_weights_url), allow_override=True
)
PathManager.register_handler(NamedWeightsHandler("timm://", timm_weights_url), allow_override=True)
