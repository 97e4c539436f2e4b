"""Validation of weights before any of them is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from salience_detr.checkpoint.errors import (
    BrokenCheckpointError,
    CheckpointError,
    list_problems,
)
from salience_detr.utils.errors import shorten


def check_tensors(state: Mapping[Any, Any], *, source: str) -> None:
    """Check that a state dict holds dense tensors by name, and nothing else.

    Raises:
        BrokenCheckpointError: naming what it holds besides.
    """
    for name, value in state.items():
        if not isinstance(name, str):
            raise BrokenCheckpointError(
                f"{source} holds no state dict of a model: the name {name!r:.40} is no text"
            )
        if not is_dense(value):
            raise BrokenCheckpointError(
                f"{source} holds no state dict of a model: {name} is {describe_value(value)}, "
                "no dense tensor"
            )


def is_dense(value: object) -> bool:
    """Return whether a value is a tensor with all of its values in memory."""
    if not isinstance(value, Tensor) or value.layout != torch.strided:
        return False
    return not (value.is_quantized or value.is_nested or value.is_meta)


def describe_value(value: object) -> str:
    """Describe a value that is no dense tensor."""
    if not isinstance(value, Tensor):
        return f"of the type {type(value).__name__}"
    if value.is_meta:
        return "a tensor without values"
    return f"a tensor of the layout {value.layout} and dtype {value.dtype}"


def is_finite(tensor: Tensor) -> bool:
    """Return whether a tensor has no NaN and nothing infinite."""
    if not tensor.is_floating_point() and not tensor.is_complex():
        return True
    if tensor.element_size() == 1:
        tensor = tensor.float()  # of the dtypes of 8 bits, PyTorch can only convert
    return bool(torch.isfinite(tensor).all())


def kind_of(tensor: Tensor) -> str:
    """Return the kind of a tensor's numbers, between which nothing is converted."""
    if tensor.is_complex():
        return "complex"
    return "floating" if tensor.is_floating_point() else "integer"


def holds_kind_of(theirs: Tensor, ours: Tensor) -> bool:
    """Return whether a tensor's numbers are of another's kind, so that loading changes none.

    Whole floating numbers are taken for integers: ``model.double()`` and averages of weights turn
    the counters of batch normalization into them.
    """
    if kind_of(theirs) == kind_of(ours):
        return True
    if kind_of(theirs) != "floating" or kind_of(ours) != "integer":
        return False
    if theirs.element_size() == 1:
        theirs = theirs.float()  # of the dtypes of 8 bits, PyTorch can only convert
    return bool((theirs == theirs.round()).all())


def check_state_dict(model: nn.Module, state: Mapping[str, Tensor], *, source: str) -> None:
    """Check that a state dict has exactly the model's tensors, of their shapes and kinds, finite.

    Args:
        model: the model to load it into.
        state: by name.
        source: name of the file in the message.

    Raises:
        BrokenCheckpointError: it holds something else than tensors, or NaN, or infinite values.
        CheckpointError: it does not fit. One message lists all of it.
    """
    check_tensors(state, source=source)
    own = model.state_dict()
    shapes = {}
    kinds = {}
    for name in own.keys() & state.keys():
        theirs, ours = state[name], own[name]
        if theirs.shape != ours.shape:
            sizes = f"{tuple(theirs.shape)} in the file, {tuple(ours.shape)} in the model"
            shapes[name] = f"{name}: {sizes}"
        if not holds_kind_of(theirs, ours):
            kinds[name] = f"{name}: {theirs.dtype} in the file, {ours.dtype} in the model"

    problems = list_problems(
        {
            "missing from the file": own.keys() - state.keys(),
            "in the file but not in the model": state.keys() - own.keys(),
            "of another shape": shapes.values(),
            "of another kind": kinds.values(),
        }
    )

    # The number of classes is what most likely differs.
    bias = "query_selection.class_head.bias"
    if bias in shapes and state[bias].ndim == 1:
        num_classes = len(state[bias])
        remedy = f"set model.num_classes={num_classes} to load it"
        numbers = f"the file has {num_classes} classes, the model {len(own[bias])}"
        problems.insert(0, f"{numbers}: {remedy}")

    if problems:
        reasons = "; ".join(problems)
        raise CheckpointError(f"{source} does not fit {type(model).__name__}; {reasons}")

    # A mask of the model's own may be infinite.
    broken = [n for n in sorted(state) if not is_finite(state[n]) and is_finite(own[n])]
    if broken:
        raise BrokenCheckpointError(
            f"{source} holds NaN or infinite values in {shorten(broken)}: the training that wrote "
            "it had diverged; take an earlier checkpoint"
        )


def load_state_dict_strictly(model: nn.Module, state: Mapping[str, Tensor], *, source: str) -> None:
    """Call ``model.load_state_dict``, but only if everything fits (see :func:`check_state_dict`).

    Raises:
        CheckpointError: see there. Nothing is loaded then.
    """
    check_state_dict(model, state, source=source)
    model.load_state_dict(dict(state))
