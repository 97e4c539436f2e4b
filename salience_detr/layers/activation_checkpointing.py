"""Activation checkpointing: less memory for more time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint


def checkpoint_activations(module: nn.Module) -> None:
    """Make a module, in place, keep only its inputs and recompute activations in the backward pass.

    Results and gradients stay the same, random numbers and BatchNorm's running statistics included.
    """
    options: dict[str, object] = {"use_reentrant": False}
    if any(isinstance(child, _BatchNorm) for child in module.modules()):
        options["context_fn"] = partial(checkpoint_contexts, module)

    module.forward = partial(checkpoint, module.forward, **options)  # type: ignore[method-assign]


def checkpoints_batch_norm(module: nn.Module) -> bool:
    """Return whether this very module is checkpointed and has BatchNorm among its layers."""
    forward = module.__dict__.get("forward")
    return isinstance(forward, partial) and "context_fn" in forward.keywords


def checkpoint_contexts(
    module: nn.Module,
) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Return the contexts of the first and the second computation."""
    return nullcontext(), still_statistics(module)


@contextmanager
def still_statistics(module: nn.Module) -> Iterator[None]:
    """Normalize by the statistics of the batch without counting the batch a second time."""
    saved = []
    for norm in module.modules():
        if isinstance(norm, _BatchNorm):
            saved.append((norm, norm.momentum, norm.num_batches_tracked))
            # Running statistics keep all of what they are, and no batch is counted.
            norm.momentum = 0.0
            norm.num_batches_tracked = None

    try:
        yield
    finally:
        for norm, momentum, count in saved:
            norm.momentum = momentum
            norm.num_batches_tracked = count
