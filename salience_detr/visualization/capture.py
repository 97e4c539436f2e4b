"""Looking at what the parts of a model compute."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def captured_output(module: nn.Module) -> Iterator[list[Any]]:
    """Collects what the module returns inside the block, from whatever thread it is called."""
    outputs: list[Any] = []
    handle = module.register_forward_hook(lambda _module, _inputs, output: outputs.append(output))
    try:
        yield outputs
    finally:
        handle.remove()
