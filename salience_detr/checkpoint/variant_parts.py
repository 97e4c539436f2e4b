"""Parts that variants of the model have and the published one has not, when weights are loaded."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping

from torch import Tensor

logger = logging.getLogger(__name__)

# Parts that training alone uses: a file may lack them, or have them beside the model's.
TRAINING_PARTS = re.compile(r"(decoder\.one_to_many_heads|hybrid_queries)\..*")

# Parts that a training may add to the weights that it starts from, or leave out.
VARIANT_PARTS = re.compile(
    r"(decoder\.one_to_many_heads|decoder\.position_relation|hybrid_queries)\..*"
)


def without_training_parts(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors that inference uses."""
    return {name: x for name, x in state.items() if not TRAINING_PARTS.fullmatch(name)}


def fit_parts(
    state: Mapping[str, Tensor],
    own: Mapping[str, Tensor],
    parts: re.Pattern[str],
    *,
    source: str,
    level: int = logging.INFO,
) -> dict[str, Tensor]:
    """Return a state dict with the parts of a model: its own where they are missing, no others.

    Args:
        state: state dict of the file, in this project's names.
        own: state dict of the model.
        parts: names of the tensors that may be missing or left over, the part as first group.
        source: name of the file in messages.
        level: of the messages.
    """
    fitted = dict(state)
    left_out = part_names(state.keys() - own.keys(), parts)
    fresh = part_names(own.keys() - state.keys(), parts)

    for name in left_out:
        del fitted[name]
    if left_out:
        names = ", ".join(sorted(set(left_out.values())))
        logger.log(level, "%s: left out %s, which the model does not have", source, names)

    for name in fresh:
        fitted[name] = own[name]
    if fresh:
        names = ", ".join(sorted(set(fresh.values())))
        logger.log(level, "%s has no %s: random weights stay there", source, names)
    return fitted


def part_names(names: set[str], parts: re.Pattern[str]) -> dict[str, str]:
    """Return the part that each of these tensors is of, without the tensors of no part."""
    found = ((name, parts.fullmatch(name)) for name in names)
    return {name: match[1] for name, match in found if match}
