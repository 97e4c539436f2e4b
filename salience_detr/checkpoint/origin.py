"""The config of the model whose weights a .safetensors file holds, in its metadata."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

from salience_detr import __version__
from salience_detr.checkpoint.errors import CheckpointError
from salience_detr.checkpoint.paths import local_path, remedy_of_damage

NAME_KEY = "config_name"
YAML_KEY = "config"
VERSION_KEY = "salience_detr_version"


@dataclass(frozen=True)
class Origin:
    """Config that weights belong to, by its name or as a whole.

    Attributes:
        config_name: name of a config of the model zoo; "" if it is another one.
        config_yaml: the resolved config as YAML; "" if the name says it.
    """

    config_name: str = ""
    config_yaml: str = ""


def origin_metadata(origin: Origin | None) -> dict[str, str]:
    """Return the metadata of a .safetensors file that name the config and this version."""
    metadata = {VERSION_KEY: __version__}
    if origin is not None and origin.config_name:
        metadata[NAME_KEY] = origin.config_name
    elif origin is not None:
        metadata[YAML_KEY] = origin.config_yaml
    return metadata


def read_origin(path: str | Path) -> Origin | None:
    """Return the config that a .safetensors file names; None if it does not, or for others.

    Raises:
        CheckpointError: the file cannot be read.
    """
    local = local_path(path)
    if not local.endswith(".safetensors"):
        return None

    try:
        with safe_open(local, framework="pt") as file:
            metadata = file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{path} cannot be read, it is truncated or not a checkpoint; "
            f"{remedy_of_damage(path, local)} ({type(error).__name__})"
        ) from error

    origin = Origin(metadata.get(NAME_KEY, ""), metadata.get(YAML_KEY, ""))
    return None if origin == Origin() else origin
