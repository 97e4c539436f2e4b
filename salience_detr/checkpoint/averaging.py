"""Mean of the weights of several checkpoints (model soups, Wortsman et al., ICML 2022)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from salience_detr.checkpoint.errors import CheckpointError
from salience_detr.utils.errors import shorten


def average_states(states: Sequence[tuple[str, Mapping[str, Tensor]]]) -> dict[str, Tensor]:
    """Return the mean of state dicts in float32; whole numbers are those of the first one.

    Args:
        states: names of files and their state dicts, at least one.

    Raises:
        CheckpointError: they are not of the same model.
    """
    (first_source, first), *others = states
    for source, state in others:
        differing = sorted(first.keys() ^ state.keys())
        for name in sorted(first.keys() & state.keys()):
            if first[name].shape != state[name].shape:
                differing.append(name)
        if differing:
            raise CheckpointError(
                f"{source} is not of the model of {first_source}, so they have no mean; tensors of "
                f"one alone, or of another shape: {shorten(differing)}"
            )

    mean = dict(first)
    for name, tensor in first.items():
        if tensor.is_floating_point():
            mean[name] = torch.stack([state[name].float() for _, state in states]).mean(0)
    return mean
