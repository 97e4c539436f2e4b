"""The config of trained weights, which they name or which lies beside them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig

from salience_detr.checkpoint import CheckpointError, read_classes
from salience_detr.checkpoint.origin import Origin, read_origin
from salience_detr.checkpoint.paths import local_path
from salience_detr.checkpoint.published import config_of_release
from salience_detr.config import ConfigError, load_config, parse_config
from salience_detr.model_zoo import get_checkpoint_url, list_models

logger = logging.getLogger(__name__)


def load_config_of(
    weights: str | Path | None,
    config_file: str | Path | None = None,
    overrides: Sequence[str] = (),
    *,
    trust: bool = False,
) -> DictConfig:
    """Load the config of weights, with overrides.

    Args:
        weights: whatever :func:`salience_detr.checkpoint.paths.local_path` knows; None if there
            are none, for which a config must be given.
        config_file: the config to use; None finds it by the weights (see :func:`find_origin`).
        overrides: ``key=value`` changes of it.
        trust: let a YAML config call whatever it names.

    Raises:
        ConfigError: it cannot be used, or nothing says which it is.
        CheckpointError: the weights cannot be had.
    """
    if config_file is not None:
        return load_config(config_file, overrides, trust=trust)
    if weights is None:
        raise ConfigError("which model? add --config-file FILE, or weights that name their config")

    origin = find_origin(weights)
    if origin is None:
        raise ConfigError(
            f"the weights {weights} do not name the config that they were trained with, and it "
            "does not lie beside them as config.yaml: add it (--config-file)"
        )
    if origin.config_yaml:
        source = f"config of {weights}"
        return parse_config(origin.config_yaml, source, overrides, trust=trust)

    # A config serves for weights with other classes, too.
    if str(weights) != origin.config_name:
        classes = read_classes(weights)
        if classes is not None:
            overrides = [f"model.num_classes={len(classes)}", *overrides]
    return load_config(origin.config_name, overrides, trust=trust)


def find_origin(weights: str | Path) -> Origin | None:
    """Return the config of weights, None if nothing tells it.

    It is the one of that name, if the weights are the name of a config; what a .safetensors file
    says in its metadata; config.yaml beside the file, as in the folder of a run; or that of a
    released file, which keeps its file name.

    Raises:
        CheckpointError: the weights cannot be had.
    """
    name = str(weights)
    if not Path(name).is_file() and name in list_models():
        if Path(name, "config.yaml").is_file():
            logger.warning("%s is taken for the model of this name; ./%s is the folder", name, name)
        get_checkpoint_url(name)
        return Origin(config_name=name)

    local = local_path(weights)
    origin = read_origin(weights)
    if origin is not None:
        return origin

    text = read_config_beside(name, Path(local))
    if text:
        return Origin(config_yaml=text)

    released = config_of_release(name)
    return Origin(config_name=released) if released else None


def read_config_beside(weights: str, local: Path) -> str:
    """Return the text of the config.yaml beside weights, "" if there is none.

    Args:
        weights: as they were given. Beside a file on the Hugging Face hub lie those of its model.
        local: the local file.
    """
    path = local.parent / "config.yaml"
    if weights.startswith("hf://"):
        repository = "/".join(weights.split("/")[:4])
        try:
            path = Path(local_path(f"{repository}/config.yaml"))
        except CheckpointError:
            return ""

    if not path.is_file():
        return ""
    return path.read_text(encoding="utf-8", errors="replace")
