"""Paths of published weights, which detectron2's path manager downloads.

They are ``torchvision://ResNet50_Weights.IMAGENET1K_V2`` and ``timm://convnext_large.fb_in1k``.
"""

from __future__ import annotations

from collections.abc import Callable

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

    def _get_local_path(self, path: str, force: bool = False, **kwargs: object) -> str:
        url = self.find_url(path.removeprefix(self.prefix))
        return PathManager.get_local_path(url, force=force)


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

    similar = timm.list_pretrained(f"*{name.split('.')[0]}*")[:8] or ["convnext_large.fb_in1k"]
    raise CheckpointError(f"timm has no weights {name!r}; it has {', '.join(similar)}")


def torchvision_weights_url(name: str) -> str:
    """Return the URL of torchvision's weights by the name of their enum.

    Raises:
        CheckpointError: if torchvision has no such weights.
    """
    try:
        return torchvision.models.get_weight(name).url
    except (ValueError, KeyError) as error:
        known = "use a name such as ResNet50_Weights.IMAGENET1K_V2"
        raise CheckpointError(f"torchvision has no weights {name!r}; {known}") from error


PathManager.register_handler(
    NamedWeightsHandler("torchvision://", torchvision_weights_url), allow_override=True
)
PathManager.register_handler(NamedWeightsHandler("timm://", timm_weights_url), allow_override=True)
