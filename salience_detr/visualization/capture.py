"""Calls of a model's parts, captured by hooks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import nn


@dataclass(frozen=True)
class ModuleCall:
    """Positional inputs and output of one call of a module."""

    inputs: tuple[Any, ...]
    output: Any


@contextmanager
def captured_calls(module: nn.Module) -> Iterator[list[ModuleCall]]:
    """Collect the module's calls inside the block, from whatever thread they come."""
    calls: list[ModuleCall] = []
    handle = module.register_forward_hook(
        lambda _module, inputs, output: calls.append(ModuleCall(inputs, output))
    )
    try:
        yield calls
    finally:
        handle.remove()
