"""Validation of what is saved beside the weights, before a run is resumed from it.

PyTorch's ``load_state_dict`` of optimizers and schedules take what they are given; a state that
does not fit would fail in the middle of a step, or train on with wrong numbers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from salience_detr.checkpoint.errors import BrokenCheckpointError
from salience_detr.checkpoint.validation import check_state_dict, is_dense, is_finite

# Entries of an optimizer's state that have a value for each of the parameter's.
ELEMENTWISE = {"exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer"}
# They are means of squares.
SQUARES = {"exp_avg_sq", "max_exp_avg_sq"}


class BrokenStateError(ValueError):
    """A saved state that no run can have written."""


def check_state(target: object, saved: object, *, source: str) -> None:
    """Check that a saved state can be loaded into an object, of which nothing changes.

    Args:
        target: model, optimizer, schedule, loss scale, or other object with ``load_state_dict``.
        saved: its state.
        source: of the state, for messages.

    Raises:
        BrokenCheckpointError: no run can have written it.
        CheckpointError, ValueError: it is of another run.
    """
    if not isinstance(saved, Mapping) or not all(isinstance(name, str) for name in saved):
        raise BrokenCheckpointError(f"{source} is broken: it is {saved!r:.60}")
    if isinstance(target, nn.Module):
        check_state_dict(target, saved, source=source)
        return

    try:
        if isinstance(target, torch.optim.Optimizer):
            check_optimizer(target, saved)
        elif isinstance(target, LRScheduler):
            check_scheduler(target, saved)
        elif isinstance(target, torch.amp.GradScaler):
            check_numbers(target.state_dict(), saved)
    except BrokenStateError as error:
        raise BrokenCheckpointError(f"{source} is broken: {error}") from error


def check_optimizer(optimizer: torch.optim.Optimizer, saved: Mapping[str, object]) -> None:
    """Check the groups of an optimizer's state, and the shapes of its moments."""
    groups = saved.get("param_groups")
    states = saved.get("state")
    if not isinstance(groups, list) or not all(isinstance(x, Mapping) for x in groups):
        raise BrokenStateError("it has no list of parameter groups")
    if not isinstance(states, Mapping):
        raise BrokenStateError("it has no state of the parameters")

    own_groups = optimizer.state_dict()["param_groups"]
    sizes = list(map(group_size, groups))
    own_sizes = [len(group["params"]) for group in own_groups]
    if sizes != own_sizes:
        raise ValueError(
            f"it has {sum(sizes)} parameters in {len(sizes)} groups, this run {sum(own_sizes)} in "
            f"{len(own_sizes)}"
        )

    for own, group in zip(own_groups, groups, strict=True):
        check_numbers({"lr": own["lr"]}, group)
        if group["lr"] < 0:
            raise BrokenStateError(f"lr is {group['lr']}")
        shared = own.keys() & group.keys() - {"params"}
        check_numbers({name: own[name] for name in shared}, group)

    # Parameters are numbered over all groups; those without a gradient have no state.
    names: list[int] = []
    parameters: list[Tensor] = []
    for group, own_group in zip(groups, optimizer.param_groups, strict=True):
        names += group["params"]
        parameters += own_group["params"]
    parameter_of = dict(zip(names, parameters, strict=True))
    if len(parameter_of) < len(names) or states.keys() - parameter_of.keys():
        raise BrokenStateError("its groups do not number the parameters of its state")
    for name, state in states.items():
        check_moments(name, state, parameter_of[name])
    for group in groups:
        check_alike([states[name] for name in group["params"] if states.get(name)])


def group_size(group: Mapping[str, object]) -> int:
    """Return the number of parameters of a saved group."""
    params = group.get("params")
    if not isinstance(params, list) or not all(type(x) is int for x in params):
        raise BrokenStateError("a group has no list of parameters")
    return len(params)


def check_moments(name: int, state: object, parameter: Tensor) -> None:
    """Check the state of one parameter."""
    if not isinstance(state, Mapping):
        raise BrokenStateError(f"the state of parameter {name} is of the type {type(state)}")

    for key, value in state.items():
        if isinstance(value, Tensor) and not is_dense(value):
            raise BrokenStateError(f"{key} of parameter {name} is no dense tensor")
        if key == "step":
            steps = value.item() if isinstance(value, Tensor) and value.numel() == 1 else value
            if not is_number(steps) or steps < 0:
                raise BrokenStateError(f"the step of parameter {name} is {value!r:.60}")
        if key not in ELEMENTWISE or value is None:
            continue

        if not isinstance(value, Tensor) or not value.is_floating_point():
            raise BrokenStateError(f"{key} of parameter {name} holds no floating-point numbers")
        if value.shape != parameter.shape:
            shapes = f"{tuple(value.shape)}, the parameter {tuple(parameter.shape)}"
            raise ValueError(f"{key} of parameter {name} has the shape {shapes}")
        if not is_finite(value):
            raise BrokenStateError(f"{key} of parameter {name} holds NaN or infinite values")
        if key in SQUARES and (value < 0).any():
            raise BrokenStateError(f"{key} of parameter {name} holds negative squares")


def check_alike(states: Sequence[Mapping[str, object]]) -> None:
    """Check that the states of a group's parameters have the same entries."""
    for state in states:
        different = states[0].keys() ^ state.keys()
        if different:
            raise BrokenStateError(f"{min(different)} is not saved of all parameters")


def check_scheduler(scheduler: LRScheduler, saved: Mapping[str, object]) -> None:
    """Check the state of a schedule, which would overwrite any attribute."""
    own = scheduler.state_dict()
    unknown = saved.keys() - own.keys()
    if "last_epoch" not in saved or any(hasattr(scheduler, name) for name in unknown):
        raise BrokenStateError(f"it holds {', '.join(sorted(saved)) or 'nothing'}")

    check_numbers({name: own[name] for name in own.keys() & saved.keys()}, saved)
    if type(saved["last_epoch"]) is not int or saved["last_epoch"] < 0:
        raise BrokenStateError(f"last_epoch is {saved['last_epoch']!r:.60}")


def check_numbers(own: Mapping[str, Any], saved: Mapping[str, Any]) -> None:
    """Check that there are finite numbers where an object has numbers, and as many."""
    for name, value in own.items():
        theirs = saved.get(name)
        if isinstance(value, list | tuple) and all(map(is_number, value)):
            is_list = isinstance(theirs, list | tuple) and len(theirs) == len(value)
            if not is_list or not all(map(is_number, theirs or ())):
                raise BrokenStateError(f"{name} is {theirs!r:.60}")
        elif is_number(value) and not is_number(theirs):
            raise BrokenStateError(f"{name} is {theirs!r:.60}")


def is_number(value: object) -> bool:
    """Return whether a value is a finite number; True and False are not."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return math.isfinite(value)


class DataOrder:
    """Settings that the order of the data depends on, to compare when a run is resumed.

    Args:
        settings: by name.
    """

    def __init__(self, settings: dict[str, int | str]) -> None:
        self.settings = settings

    def state_dict(self) -> dict[str, int | str]:
        return self.settings

    def load_state_dict(self, saved: dict[str, int | str]) -> None:
        """Compare the saved settings with those of this run.

        Raises:
            ValueError: naming what differs, with both values.
        """
        differences = []
        for key in self.settings | saved:
            before, now = saved.get(key), self.settings.get(key)
            if before != now:
                differences.append(f"{key} was {before}, is {now}")

        if differences:
            raise ValueError("; ".join(differences))
