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
    has_batch_norm = any(isinstance(child, _BatchNorm) for child in module.modules())
    context = {"context_fn": partial(checkpoint_contexts, module)} if has_batch_norm else {}
    module.forward = partial(checkpoint, module.forward, use_reentrant=False, **context)  # type: ignore[method-assign]


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
            count = norm.num_batches_tracked
            saved.append((norm, norm.momentum, None if count is None else count.clone()))
            norm.momentum = 0.0  # running statistics keep all of what they are

    try:
        yield
    finally:
        for norm, momentum, count in saved:
            norm.momentum = momentum
            if norm.num_batches_tracked is not None and count is not None:
                norm.num_batches_tracked.copy_(count)
