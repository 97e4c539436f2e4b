"""LazyConfig files and overrides, with typos found."""

from __future__ import annotations

import difflib
import inspect
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.config import LazyConfig
from detectron2.utils.registry import locate
from omegaconf import DictConfig, ListConfig, OmegaConf

SECTIONS = ("model", "dataloader", "optimizer", "lr_multiplier", "train")
TEXTS = ("train.output_dir", "train.init_checkpoint", "train.device", "train.best_metric")
COUNTS = (
    "model.num_classes",
    "model.num_queries",
    "dataloader.train.total_batch_size",
    "train.max_iter",
    "train.log_period",
    "train.accumulate",
    "train.checkpointer.max_to_keep",
)


class ConfigError(ValueError):
    """A configuration or an override that cannot be used."""


def is_override(word: str) -> bool:
    """Whether a word of a command line is key=value rather than a path."""
    return "=" in word and not os.path.exists(word) and "/" not in word.partition("=")[0]


def load_config(config_file: str | Path, overrides: Sequence[str] = ()) -> DictConfig:
    """A LazyConfig file with ``key=value`` overrides applied.

    Raises:
        ConfigError: there is no such file, or an override is not one, or its key does not exist (the nearest is named).
    """
    if not Path(config_file).is_file():
        raise ConfigError(f"there is no config file {config_file}; the project's are in configs/")
    try:
        config = LazyConfig.load(str(config_file))
    except Exception as error:  # whatever the code in the file raises
        raise ConfigError(
            f"the config file {config_file} cannot be loaded: {type(error).__name__}: {error}"
        ) from error
    missing = [key for key in SECTIONS if key not in config]
    if missing:
        raise ConfigError(
            f"{config_file} defines no {', '.join(missing)}; a config needs {', '.join(SECTIONS)} (see configs/*.py)"
        )
    apply_overrides(config, overrides)
    check_counts(config)
    return config


def check_counts(config: DictConfig) -> None:
    """Raise ConfigError where a number of things is not positive."""
    for key in COUNTS:
        value = OmegaConf.select(config, key)
        if value is not None and not value >= 1:
            raise ConfigError(f"{key} is {value}; it must be at least 1")


def apply_overrides(config: DictConfig, overrides: Sequence[str]) -> None:
    """Apply ``key=value`` overrides in place; ``+key=value`` adds a key that is not there.

    Raises:
        ConfigError: see :func:`load_config`.
    """
    for override in overrides:
        key, equals, _ = override.partition("=")
        if not equals or not key:
            raise ConfigError(f"the override {override!r} is not of the form key=value")
        if not key.startswith("+") and not has_key(config, key):
            raise ConfigError(unknown_key_message(config, key))
        before = OmegaConf.select(config, key) if not key.startswith("+") else None
        try:
            LazyConfig.apply_overrides(config, [override.removeprefix("+")])
        except Exception as error:
            first_line = (str(error).splitlines() or [type(error).__name__])[0]
            raise ConfigError(
                f"the override {override!r} cannot be applied: {first_line}"
            ) from error
        check_kind(override, before, OmegaConf.select(config, key.removeprefix("+")))


def check_kind(override: str, before: Any, after: Any) -> None:
    """Raise ConfigError where a number, a switch or a group of settings became something of another kind."""
    kinds = {
        bool: "true or false",
        int: "a whole number",
        float: "a number",
        DictConfig: "a group of settings",
        ListConfig: "a list",
    }
    if override.partition("=")[0] in TEXTS and not isinstance(after, str):
        raise ConfigError(
            f"the override {override!r} does not fit: {override.partition('=')[0]} is a text"
        )
    for kind, words in kinds.items():
        if isinstance(before, kind):
            allowed = (int, float) if kind is float else kind
            fits = isinstance(after, allowed) and isinstance(after, bool) == (kind is bool)
            if not fits:
                raise ConfigError(
                    f"the override {override!r} does not fit: {override.partition('=')[0]} is {words}"
                )
            return


def has_key(config: DictConfig, key: str) -> bool:
    """Whether a dotted key exists, or is an argument that its object takes without the config stating it."""
    *parents, last = key.split(".")
    node: Any = config
    for part in parents:
        node = _child(node, part)
        if not isinstance(node, (DictConfig, ListConfig)):
            return False
    return _child(node, last) is not None or (
        isinstance(node, DictConfig) and (last in node or _accepts(node, last))
    )


def unknown_key_message(config: DictConfig, key: str) -> str:
    """Names the nearest existing keys."""
    keys = list(_all_keys(config))
    near = difflib.get_close_matches(key, keys, n=3, cutoff=0.6)
    last = key.rsplit(".", 1)[-1]
    near += [k for k in keys if k.rsplit(".", 1)[-1] == last and k not in near][:2]
    hint = (
        f"did you mean {' or '.join(near[:3])}?"
        if near
        else f"top-level keys are {', '.join(map(str, config))}"
    )
    return f"the config has no key {key!r}; {hint} (+{key}=... adds a new one)"


def _child(node: Any, part: str) -> Any:
    if isinstance(node, ListConfig):
        return node[int(part)] if part.isdigit() and int(part) < len(node) else None
    return node.get(part) if isinstance(node, DictConfig) else None


def _accepts(node: DictConfig, argument: str) -> bool:
    target = node.get("_target_")
    if target is None:
        return False
    function = locate(target) if isinstance(target, str) else target
    return argument in inspect.signature(function).parameters


def _all_keys(node: Any, prefix: str = "") -> Iterator[str]:
    items: Any = (
        node.items_ex(resolve=False)
        if isinstance(node, DictConfig)
        else enumerate(node._iter_ex(False))
    )
    for name, value in items:
        if name == "_target_":
            continue
        yield f"{prefix}{name}"
        if isinstance(value, (DictConfig, ListConfig)) and not OmegaConf.is_interpolation(
            node, name
        ):
            yield from _all_keys(value, f"{prefix}{name}.")


def resolve_device(device: str) -> torch.device:
    """The device that a config names; "auto" is this process's GPU if there is one, else the CPU.

    Raises:
        ConfigError: there is no such device.
    """
    if device == "auto":
        return (
            torch.device("cuda", torch.cuda.current_device())
            if torch.cuda.is_available()
            else torch.device("cpu")
        )
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError, TypeError) as error:
        reason = (str(error).splitlines() or ["unknown"])[0]
        raise ConfigError(
            f"the device {device!r} cannot be used ({reason}); use auto, cpu, cuda or cuda:N"
        ) from error
    return found


def resolve_amp(amp: DictConfig, device: torch.device) -> torch.dtype | None:
    """The autocast dtype of a config, or None if mixed precision is off."""
    if not amp.enabled:
        return None
    names = {
        "bf16": torch.bfloat16,
        "bfloat16": torch.bfloat16,
        "fp16": torch.float16,
        "float16": torch.float16,
    }
    if amp.dtype == "auto":
        has_bf16 = device.type == "cpu" or torch.cuda.is_bf16_supported()
        return torch.bfloat16 if has_bf16 else torch.float16
    if amp.dtype not in names:
        raise ConfigError(f"train.amp.dtype is {amp.dtype!r}; use auto, bf16 or fp16")
    return names[amp.dtype]
