"""Paths of published weights, which detectron2's path manager downloads.

They are ``torchvision://ResNet50_Weights.IMAGENET1K_V2``, ``timm://convnext_large.fb_in1k`` and
``hf://owner/name`` or ``hf://owner/name/file`` of the Hugging Face hub. A file that cannot be
downloaded may be put into the cache by hand: the error says where.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlparse
from urllib.request import urlopen

import timm
import torchvision
from detectron2.utils.file_io import PathManager
from huggingface_hub import HfApi, constants, hf_hub_download, hf_hub_url
from huggingface_hub.errors import EntryNotFoundError
from huggingface_hub.utils import get_session
from iopath.common.file_io import PathHandler, get_cache_dir

from salience_detr.checkpoint.errors import CheckpointError
from salience_detr.utils.errors import one_line, shorten

# Time until a server must answer.
TIMEOUT = 30  # seconds
REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")  # names on the hub
DEFAULT_FILE = "model.safetensors"  # of a model on the hub


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
        return download(url, force=force)


class HubHandler(PathHandler):
    """Handler of ``hf://owner/name/file``, files of models on the Hugging Face hub.

    ``hf://owner/name`` is its model.safetensors, or else its only .safetensors or .pth file.
    """

    PREFIX = "hf://"

    def _get_supported_prefixes(self) -> list[str]:
        return [self.PREFIX]

    def _get_local_path(self, path: str, **kwargs: object) -> str:
        owner, _, rest = path.removeprefix(self.PREFIX).rstrip("/").partition("/")
        name, _, file_name = rest.partition("/")
        if not REPOSITORY.fullmatch(f"{owner}/{name}") or ".." in file_name.split("/"):
            raise CheckpointError(f"{path} is not of the form hf://owner/name or .../name/file")

        repository = f"{owner}/{name}"
        page = f"{constants.ENDPOINT}/{repository}"
        placed = cached_path(f"{self.PREFIX}{repository}/{file_name or DEFAULT_FILE}")
        if placed.is_file():
            return str(placed)

        is_online = can_reach_hub()
        reason = f"{constants.ENDPOINT} cannot be reached"
        try:
            if is_online and not file_name:
                names = HfApi(constants.ENDPOINT).list_repo_files(repository)
                file_name = choose_file(path, names)
            file_name = file_name or DEFAULT_FILE
            return hf_hub_download(repository, file_name, local_files_only=not is_online)
        except (OSError, ValueError, EntryNotFoundError) as error:
            if is_online:
                reason = one_line(error)
            raise CheckpointError(
                f"cannot get {path} ({reason}); you can put {placed.name} of {page} there by hand: "
                f"{placed}"
            ) from error


def can_reach_hub() -> bool:
    """Return whether the hub answers. The library would try for half a minute, and print it."""
    try:
        get_session().head(constants.ENDPOINT, timeout=TIMEOUT)
    except Exception:  # of the library's HTTP client, which differs between its versions
        return False
    return True


def choose_file(path: str, names: list[str]) -> str:
    """Return the name of the weights among the files of a model on the hub.

    Raises:
        CheckpointError: there are none, or several.
    """
    for suffix in (".safetensors", ".pth"):
        found = [name for name in names if name.endswith(suffix)]
        if DEFAULT_FILE in found:
            return DEFAULT_FILE
        if len(found) == 1:
            return found[0]
        if found:
            listed = shorten(found)
            raise CheckpointError(f"{path} has several files, name one as {path}/FILE: {listed}")

    listed = shorten(names) or "nothing"
    raise CheckpointError(f"{path} has no .safetensors and no .pth file; it has {listed}")


def download(url: str, *, force: bool = False) -> str:
    """Return the local path of a URL, which the path manager downloads into its cache once.

    Raises:
        CheckpointError: it cannot be downloaded; says where to put the file by hand.
    """
    try:
        # The download itself would print a progress bar before it fails.
        if force or not cached_path(url).is_file():
            urlopen(url, timeout=TIMEOUT).close()
        return PathManager.get_local_path(url, force=force)
    except OSError as error:
        reason = one_line(error).strip("<>")
        raise CheckpointError(
            f"cannot get the checkpoint {url}: {reason}; you can put the file there by hand: "
            f"{cached_path(url)}"
        ) from error


def cached_path(url: str) -> Path:
    """Return where the path manager keeps the file of a URL, and :class:`HubHandler` looks first.

    The path is that of iopath's ``HTTPURLHandler``, which does not tell it before a download.
    """
    address = urlparse(url)
    folder = os.path.dirname(address.path.lstrip("/"))
    if address.scheme == "hf":
        folder = os.path.join("huggingface", address.netloc, folder)
    return Path(get_cache_dir(), folder, url.rpartition("/")[2])


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
PathManager.register_handler(HubHandler(), allow_override=True)
