"""Dotted keys of a config, and the parameters of what it calls."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterator, Mapping

from detectron2.utils.registry import locate
from omegaconf import DictConfig, OmegaConf


def has_key(config: DictConfig, key: str) -> bool:
    """Return whether a key exists, or is an argument that the config leaves at its default."""
    parent_key, _, last = key.rpartition(".")
    nodes = dict(walk(config))
    parent = nodes.get(parent_key)
    if not isinstance(parent, dict):
        return key in nodes

    target = parent.get("_target_")
    return last in parent or (target is not None and last in parameters_of(target))


def parameters_of(target: str | Callable[..., object]) -> Mapping[str, inspect.Parameter]:
    """Return the parameters of a function or class, which may be given by its dotted name.

    Raises:
        ImportError: there is none of that name.
    """
    function = locate(target) if isinstance(target, str) else target
    return inspect.signature(function).parameters


def unknown_key_message(config: DictConfig, key: str) -> str:
    """Return an error message that names the nearest existing keys."""
    keys = sorted(key for key, _ in walk(config))
    near = difflib.get_close_matches(key, keys, n=3, cutoff=0.6)

    # Keys of the same name elsewhere come next.
    last = key.rpartition(".")[2]
    near += [k for k in keys if k.rpartition(".")[2] == last and k not in near][:2]

    hint = f"top-level keys are {', '.join(map(str, config))}"
    if near:
        hint = f"did you mean {' or '.join(near[:3])}?"
    return f"the config has no key {key!r}; {hint} (+{key}=... adds a new one)"


def walk(node: object, prefix: str = "") -> Iterator[tuple[str, object]]:
    """Yield the dotted keys and values of a config; interpolations are not resolved."""
    if isinstance(node, DictConfig):
        node = OmegaConf.to_container(node)  # plain dicts and lists

    if isinstance(node, list):
        node = dict(enumerate(node))
    if not isinstance(node, dict):
        return

    for name, value in node.items():
        if name != "_target_":
            yield f"{prefix}{name}", value
            yield from walk(value, f"{prefix}{name}.")
