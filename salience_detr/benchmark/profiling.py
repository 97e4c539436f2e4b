"""What a model costs: parameters, multiply-accumulates, milliseconds by stage, memory."""

from __future__ import annotations

import contextlib
import logging
import math
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from fvcore.nn import ActivationCountAnalysis, FlopCountAnalysis
from torch import nn

from salience_detr.layers import ms_deform_attn

# In the order of the data.
STAGES = (
    "backbone", "neck", "token_pyramid", "token_projection", "salience_filter", "encoder", "feature_fusion",
    "query_selection", "decoder",
)  # fmt: skip
# Of what fvcore does not know: all that is no plain arithmetic of PyTorch's.
NOT_ARITHMETIC = re.compile(
    r"^(?!aten::|prim::)|CallFunction|mm|conv|attention|sampl|linear|einsum"
)
SCRIPTED = "scripted functions, such as NMS"  # what a graph calls prim::CallFunction
STATUS, CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def stages_of(model: nn.Module) -> tuple[str, ...]:
    """The parts that tables list: :data:`STAGES`, or all children of a model of another architecture."""
    children = tuple(name for name, _ in model.named_children())
    return STAGES if set(STAGES) <= set(children) else children


def noise_image(height: int, width: int) -> dict[str, Any]:
    """A model's input: always the same image of noise."""
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=generator)
    return {"image": image, "height": height, "width": width}


class StageCount(NamedTuple):
    """Of one stage, or of the "total": parameters in millions, GMACs, activations in millions."""

    stage: str
    parameters: float
    gmacs: float
    activations: float


@dataclass(frozen=True)
class Count:
    """What :func:`count` finds.

    Attributes:
        stages: a row for each stage; the last is the total.
        uncounted: how often operators ran that cost more than plain arithmetic and are in no count.
    """

    stages: list[StageCount]
    uncounted: Counter[str]


def attention_macs(inputs: list[Any], outputs: list[Any]) -> Counter[str]:
    """MACs of scaled dot-product attention, which fvcore does not know: QK^T and the weighted sum of V."""
    query, key = inputs[0].type().sizes(), inputs[1].type().sizes()
    return Counter({"attention": 2 * math.prod(query) * key[-2]})


def attention_activations(inputs: list[Any], outputs: list[Any]) -> Counter[str]:
    """Numbers that QK^T and the weighted sum of V give."""
    query, key = inputs[0].type().sizes(), inputs[1].type().sizes()
    return Counter({"attention": math.prod(query[:-1]) * key[-2] + math.prod(query)})


class Traceable(nn.Module):
    """The model as tensors in, tensors out, which tracing asks for."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(3, H, W) image -> boxes and scores"""
        instances = self.model([{"image": image}])[0]["instances"]
        return instances.pred_boxes.tensor, instances.scores


@contextmanager
def countable() -> Iterator[None]:
    """Attention in the forms that fvcore knows, and fvcore's warnings off."""
    fastpath, logger = torch.backends.mha.get_fastpath_enabled(), logging.getLogger("fvcore")
    level = logger.level
    torch.backends.mha.set_fastpath_enabled(False)
    logger.setLevel(logging.ERROR)
    try:
        with patch.object(ms_deform_attn, "is_compiled_for", lambda _: False):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fastpath)
        logger.setLevel(level)


@torch.no_grad()
def count(model: nn.Module, height: int, width: int) -> Count:
    """fvcore's counts for one image of the given size in evaluation, on the CPU.

    Its "flops" are MACs, its activations the numbers that convolutions and matrix products give.

    Args:
        model: takes and gives what detectron2's do; it is put into evaluation mode.
    """
    traceable, image = Traceable(model).eval(), noise_image(height, width)["image"]
    macs, activations = (
        FlopCountAnalysis(traceable, image),
        ActivationCountAnalysis(traceable, image),
    )
    for name in ("scaled_dot_product_attention", "_scaled_dot_product_flash_attention_for_cpu"):
        macs.set_op_handle(f"aten::{name}", attention_macs)
        activations.set_op_handle(f"aten::{name}", attention_activations)
    for analysis in (macs, activations):
        analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings(
            "none"
        )
    with countable():
        macs_of, activations_of = macs.by_module(), activations.by_module()
    rows = []
    for stage in (*stages_of(model), ""):
        parameters = sum(p.numel() for p in model.get_submodule(stage).parameters())
        name = f"model.{stage}" if stage else ""
        rows.append(
            StageCount(
                stage or "total", parameters / 1e6, macs_of[name] / 1e9, activations_of[name] / 1e6
            )
        )
    unknown = {
        name: times for name, times in macs.unsupported_ops().items() if NOT_ARITHMETIC.search(name)
    }
    return Count(
        rows,
        Counter({SCRIPTED if "CallFunction" in name else name: n for name, n in unknown.items()}),
    )


class Clock:
    """Wall-clock time in seconds, with all work of the device done."""

    def __init__(self, device: torch.device | str) -> None:
        self.wait = torch.cuda.synchronize if torch.device(device).type == "cuda" else lambda: None

    def __call__(self) -> float:
        self.wait()
        return time.perf_counter()


def durations(step: Callable[[], object], clock: Clock, repeats: int) -> list[float]:
    """Milliseconds of each of several calls."""
    times = []
    for _ in range(repeats):
        begin = clock()
        step()
        times.append((clock() - begin) * 1e3)
    return times


@contextmanager
def stage_times(model: nn.Module, clock: Clock, milliseconds: dict[str, float]) -> Iterator[None]:
    """Adds up how long each stage's forward takes."""
    begun: dict[str, float] = {}
    handles = []
    for name in stages_of(model):
        stage = model.get_submodule(name)

        def begin(*_: Any, name: str = name) -> None:
            begun[name] = clock()

        def end(*_: Any, name: str = name) -> None:
            milliseconds[name] = milliseconds.get(name, 0.0) + (clock() - begun[name]) * 1e3

        handles += [stage.register_forward_pre_hook(begin), stage.register_forward_hook(end)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class PeakMemory:
    """The most memory that a model and its calls hold at once, in a process that does nothing else.

    On a GPU that is what tensors are allocated; on the CPU the weights, and what the process holds above its
    resident memory of now.

    Args:
        model: on its device, before its first call.
    """

    def __init__(self, model: nn.Module) -> None:
        tensors = [*model.parameters(), *model.buffers()]
        self.on_gpu = any(x.is_cuda for x in tensors)
        self.weights = sum(x.numel() * x.element_size() for x in tensors)
        self.start = resident_bytes("VmRSS")

    def reset(self) -> None:
        """Forget the peak so far."""
        if self.on_gpu:
            torch.cuda.reset_peak_memory_stats()
        else:
            with contextlib.suppress(
                OSError
            ):  # a system that does not allow it: then the peak is the process's
                CLEAR_REFS.write_text("5")

    def mebibytes(self) -> float | None:
        """The peak since the last reset; None where the system does not tell."""
        if self.on_gpu:
            return torch.cuda.max_memory_allocated() / 2**20
        peak = resident_bytes("VmHWM")
        return (
            None
            if peak is None or self.start is None
            else (self.weights + max(0, peak - self.start)) / 2**20
        )


def resident_bytes(field: str) -> int | None:
    """Resident memory of this process: of now ("VmRSS") or at its peak ("VmHWM"); None where there is no Linux."""
    if not STATUS.is_file():
        return None
    # The resource module's peak would begin with that of the process which started this one.
    found = re.search(rf"{field}:\s*(\d+) kB", STATUS.read_text())
    return int(found[1]) * 1024 if found else None
