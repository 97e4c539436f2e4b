"""The error of this package, and the way its messages list names of tensors."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from salience_detr.utils.errors import shorten


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be read, or that does not fit the model."""


class BrokenCheckpointError(CheckpointError):
    """A checkpoint whose content no run can have written, or of which nothing can be used."""


def list_problems(names_by_problem: Mapping[str, Collection[str]]) -> list[str]:
    """Describe each problem that has names, as in ``2 missing: a.weight, a.bias``."""
    problems = []
    for problem, names in names_by_problem.items():
        if names:
            problems.append(f"{len(names)} {problem}: {shorten(sorted(names))}")
    return problems
