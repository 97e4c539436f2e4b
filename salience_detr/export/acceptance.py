"""Acceptance of an int8 graph by its AP: what costs too much is given back to float32."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from salience_detr.export.info import DetectorInfo, ExportError
from salience_detr.export.quantization import find_layers, quantize

if TYPE_CHECKING:  # the package is optional
    import openvino

Measure = Callable[["openvino.Model"], float]


@dataclass(frozen=True)
class Accepted:
    """A graph in int8 that loses no more AP than it may.

    Attributes:
        model: the graph.
        float_groups: groups that were given back to float32, the most harmful first.
        float_ap: AP of the graph in float32, in percent.
        ap: its own AP.
    """

    model: openvino.Model
    float_groups: tuple[str, ...]
    float_ap: float
    ap: float


class Acceptance:
    """Search for the groups of layers that can be in int8.

    Args:
        model: the graph in float32.
        info: how images become inputs.
        images: files to calibrate on.
        measure: returns the AP of a graph in percent.
        max_drop: AP that may be lost.
    """

    def __init__(
        self,
        model: openvino.Model,
        info: DetectorInfo,
        images: Sequence[Path],
        *,
        measure: Measure,
        max_drop: float,
    ) -> None:
        self.model = model
        self.info = info
        self.images = images
        self.measure = measure
        self.max_drop = max_drop
        self.float_ap = 0.0

    def search(self) -> Accepted:
        """Quantize all groups; if that costs too much, give back one after the other.

        The order is that of the AP with each group alone in float32, the highest first. Each AP is
        printed.

        Raises:
            ExportError: no group can be in int8.
        """
        self.float_ap = self.measure(self.model)
        print(f"float32: AP {self.float_ap:.2f}", flush=True)
        accepted = self.attempt(())
        if accepted is not None:
            return accepted

        groups = list(dict.fromkeys(find_layers(self.model).values()))
        print(f"that is more than {self.max_drop:g} lost; trying each group in float32", flush=True)
        found = {group: self.measure_without((group,))[1] for group in groups}
        ranking = sorted(groups, key=lambda group: -found[group])
        for count in range(1, len(ranking)):
            accepted = self.attempt(tuple(ranking[:count]))
            if accepted is not None:
                return accepted

        raise ExportError(
            f"int8 loses more than {self.max_drop:g} AP whichever group of layers has it; allow "
            "more with --max-ap-drop, or leave out --int8"
        )

    def attempt(self, float_groups: tuple[str, ...]) -> Accepted | None:
        """Return the graph with groups in float32, None if it loses too much."""
        model, ap = self.measure_without(float_groups)
        if self.float_ap - ap > self.max_drop:
            return None
        return Accepted(model, float_groups, self.float_ap, ap)

    def measure_without(self, float_groups: tuple[str, ...]) -> tuple[openvino.Model, float]:
        """Return the graph with groups in float32, and its AP."""
        model = quantize(self.model, self.info, self.images, float_groups=float_groups)
        ap = self.measure(model)
        name = f"int8 but for {', '.join(float_groups)}" if float_groups else "int8"
        print(f"{name}: AP {ap:.2f} ({ap - self.float_ap:+.2f})", flush=True)
        return model, ap
