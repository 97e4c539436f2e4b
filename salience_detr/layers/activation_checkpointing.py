"""Activation checkpointing: less memory for more time, by computing activations again in backward."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint


def checkpoint_activations(module: nn.Module) -> None:
    """Make a module, in place, keep its inputs only and compute the rest again in the backward pass.

    Results and gradients stay the same, random numbers and the running statistics of BatchNorm included.
    """
    has_batch_norm = any(isinstance(child, _BatchNorm) for child in module.modules())
    context = {"context_fn": partial(checkpoint_contexts, module)} if has_batch_norm else {}
    module.forward = partial(checkpoint, module.forward, use_reentrant=False, **context)  # type: ignore[method-assign]


def checkpoints_batch_norm(module: nn.Module) -> bool:
    """Whether the activations of a module itself are computed again, with BatchNorm among its layers."""
    forward = module.__dict__.get("forward")
    return isinstance(forward, partial) and "context_fn" in forward.keywords


def checkpoint_contexts(
    module: nn.Module,
) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """What the first and the second computation run in."""
    return nullcontext(), still_statistics(module)


@contextmanager
def still_statistics(module: nn.Module) -> Iterator[None]:
    """Normalize by the statistics of the batch without counting it a second time."""
    norms = [x for x in module.modules() if isinstance(x, _BatchNorm)]
    counts = [x.num_batches_tracked for x in norms]
    before = [
        (norm, norm.momentum, None if count is None else count.clone())
        for norm, count in zip(norms, counts, strict=True)
    ]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum, count in before:
            norm.momentum = momentum
            if norm.num_batches_tracked is not None and count is not None:
                norm.num_batches_tracked.copy_(count)
