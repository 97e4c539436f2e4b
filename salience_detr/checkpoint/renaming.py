"""Tables that translate the names of a file's tensors into the names of our modules."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import NamedTuple

from torch import Tensor

from salience_detr.checkpoint.errors import CheckpointError, list_problems

# The tensors of a module: their name in the file, and ours. A single tensor has no suffix.
TENSOR = {"": ""}
LAYER = {".weight": ".weight", ".bias": ".bias"}
BATCH_NORM = {**LAYER, ".running_mean": ".running_mean", ".running_var": ".running_var"}


class Rename(NamedTuple):
    """A row of a table: a module or a tensor in the file, and in our model.

    ``*`` stands for each index of a list of modules. Both names have the same number of them.

    Attributes:
        theirs: name in the file.
        ours: name in our model.
        tensors: suffixes of the module's tensors, in the file and in our model.
        change: computes our tensor from the one in the file, where their shapes differ.
    """

    theirs: str
    ours: str
    tensors: Mapping[str, str] = TENSOR
    change: Callable[[Tensor], Tensor] | None = None


def unchanged(
    tensors: Mapping[str, str], *names: str, change: Callable[[Tensor], Tensor] | None = None
) -> list[Rename]:
    """Return rows of a table for modules of the same name in the file and in our model."""
    return [Rename(name, name, tensors, change) for name in names]


def inside(theirs: str, ours: str, *rows: Rename) -> list[Rename]:
    """Return rows of a table for the parts of a module, by the module's names."""
    return [
        row._replace(theirs=f"{theirs}.{row.theirs}", ours=f"{ours}.{row.ours}") for row in rows
    ]


def expand(table: Iterable[Rename], source: Collection[str]) -> Iterator[Rename]:
    """Yield a row for each tensor that a file must have by this table.

    Args:
        table: rows of modules and tensors.
        source: names in the file, which tell how long its lists are. A list has at least one
            entry, so that a list which is not there is reported as missing.
    """
    for row in table:
        prefix, star, _ = row.theirs.partition("*")

        if star:
            for index in range(max(1, list_length(source, prefix))):
                theirs = row.theirs.replace("*", str(index), 1)
                ours = row.ours.replace("*", str(index), 1)
                yield from expand([row._replace(theirs=theirs, ours=ours)], source)
            continue

        for suffix, our_suffix in row.tensors.items():
            yield Rename(row.theirs + suffix, row.ours + our_suffix, change=row.change)


def list_length(names: Iterable[str], prefix: str) -> int:
    """Return the length of the list of modules ``{prefix}0``, ``{prefix}1``, ..."""
    indices = {name[len(prefix) :].partition(".")[0] for name in names if name.startswith(prefix)}
    return max((int(index) + 1 for index in indices if index.isdigit()), default=0)


def check_names(label: str, *, missing: Collection[str], unknown: Collection[str]) -> None:
    """Raise CheckpointError if a file lacks tensors of its format, or has others.

    Args:
        label: name of the format, with an article.
    """
    problems = list_problems({"missing": missing, "unknown": unknown})
    if problems:
        reasons = "; ".join(problems)
        raise CheckpointError(f"the file does not hold exactly the tensors of {label}: {reasons}")


def rename_tensors(source: Mapping[str, Tensor], renames: Iterable[Rename]) -> dict[str, Tensor]:
    """Return the tensors of a file by our names, in our shapes."""
    renamed = {}
    for rename in renames:
        tensor = source[rename.theirs]
        renamed[rename.ours] = rename.change(tensor) if rename.change else tensor
    return renamed
