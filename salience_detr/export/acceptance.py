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
class Trial:
    """A graph in int8, and what it costs.

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

    def search(self) -> Trial:
        """Quantize all groups; if that costs too much, give back one after the other.

        Each group is tried alone in float32, and if none suffices, several together, those first
        that gained most. Each AP is printed.

        Raises:
            ExportError: no group can be in int8.
        """
        self.float_ap = self.measure(self.model)
        print(f"float32: AP {self.float_ap:.2f}", flush=True)
        trial = self.attempt(())
        if self.is_accepted(trial):
            return trial

        groups = list(dict.fromkeys(find_layers(self.model).values()))
        print(f"that is more than {self.max_drop:g} lost; trying each group in float32", flush=True)
        gains = {}
        for group in groups:
            trial = self.attempt((group,))
            if self.is_accepted(trial):
                return trial
            gains[group] = trial.ap

        ranking = sorted(groups, key=lambda group: -gains[group])
        for count in range(2, len(ranking)):
            trial = self.attempt(tuple(ranking[:count]))
            if self.is_accepted(trial):
                return trial

        raise ExportError(
            f"int8 loses more than {self.max_drop:g} AP whichever group of layers has it; allow "
            "more with --max-ap-drop, or leave out --int8"
        )

    def is_accepted(self, trial: Trial) -> bool:
        """Return whether a graph loses no more AP than it may."""
        return self.float_ap - trial.ap <= self.max_drop

    def attempt(self, float_groups: tuple[str, ...]) -> Trial:
        """Return the graph with groups in float32, and print its AP."""
        model = quantize(self.model, self.info, self.images, float_groups=float_groups)
        ap = self.measure(model)
        name = f"int8 but for {', '.join(float_groups)}" if float_groups else "int8"
        print(f"{name}: AP {ap:.2f} ({ap - self.float_ap:+.2f})", flush=True)
        return Trial(model, float_groups, self.float_ap, ap)
