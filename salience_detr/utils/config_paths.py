"""Relative paths in configs, made absolute, so that a config can be used from any folder."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig, ListConfig, OmegaConf

# Keys whose values are paths, in any part of a config.
PATH_KEYS = ("json_file", "image_root", "output_dir", "init_checkpoint")
# Data sets of a file are registered under its path; other names are left alone.
NAME_KEY = "names"
# https://, detectron2://, hf:... but no drive of Windows
HANDLER = re.compile(r"^\w\w+:")


def make_paths_absolute(
    node: DictConfig | ListConfig, bases: Sequence[Path], *, must_exist: bool
) -> None:
    """Make the relative paths of a config absolute, in place.

    URLs, paths of detectron2's handlers, registered names and interpolations stay.

    Args:
        node: a config.
        bases: folders that the paths may be relative to; the first in which there is one counts.
        must_exist: leave a path alone that is in none of them, instead of taking the first folder.
    """
    keys = list(node) if isinstance(node, DictConfig) else list(range(len(node)))
    for key in keys:
        if OmegaConf.is_missing(node, key) or OmegaConf.is_interpolation(node, key):
            continue

        value = node[key]
        if OmegaConf.is_config(value):
            make_paths_absolute(value, bases, must_exist=must_exist)
        elif isinstance(value, str) and key in (*PATH_KEYS, NAME_KEY):
            # A checkpoint may be the name of a model, and a data set that of a registered one.
            is_name = key in (NAME_KEY, "init_checkpoint")
            node[key] = absolute(value, bases, must_exist=must_exist or is_name)


def absolute(path: str, bases: Sequence[Path], *, must_exist: bool) -> str:
    """Return a path as an absolute one, see :func:`make_paths_absolute`."""
    if not path or HANDLER.match(path) or os.path.isabs(path):
        return path

    candidates = [os.path.abspath(base / path) for base in bases]
    for candidate in candidates:
        if os.path.exists(candidate):
            return candidate
    return path if must_exist else candidates[0]
