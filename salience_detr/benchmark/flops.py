"""Parameters, multiply-accumulates and activations of a model, by stage."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple
from unittest.mock import patch

import torch
from fvcore.nn import ActivationCountAnalysis, FlopCountAnalysis
from torch import Tensor, nn

from salience_detr.layers import ms_deform_attn

# The stages of SalienceDETR, in the order of the data.
STAGES = (
    "backbone",
    "neck",
    "token_pyramid",
    "token_projection",
    "salience_filter",
    "encoder",
    "feature_fusion",
    "query_selection",
    "decoder",
)
# Operators that cost more than plain arithmetic: they are reported where fvcore cannot count them.
COSTLY = re.compile(r"^(?!aten::|prim::)|CallFunction|mm|conv|attention|sampl|linear|einsum")
# PyTorch's attention, which fvcore does not know.
ATTENTION = (
    "aten::scaled_dot_product_attention",
    "aten::_scaled_dot_product_flash_attention_for_cpu",
)
SCRIPTED = "scripted functions, such as NMS"  # prim::CallFunction in a graph


class StageCost(NamedTuple):
    """Parameters in millions, GMACs and activations in millions of a stage, or of the "total"."""

    stage: str
    parameters: float
    gmacs: float
    activations: float


@dataclass(frozen=True)
class ModelCost:
    """Cost of a model for one image.

    Attributes:
        stages: one row per stage; the last row is the total.
        uncounted: number of calls of each costly operator that fvcore cannot count.
    """

    stages: list[StageCost]
    uncounted: Counter[str]


class TensorInterface(nn.Module):
    """Wrapper of a detector with tensors as input and output, as fvcore's tracing needs them."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """(3, H, W) image -> (N, 4) boxes, absolute xyxy, and (N,) scores."""
        instances = self.model([{"image": image}])[0]["instances"]
        return instances.pred_boxes.tensor, instances.scores


def stages_of(model: nn.Module) -> tuple[str, ...]:
    """Return :data:`STAGES`, or the names of all children of a model of another architecture."""
    children = tuple(dict(model.named_children()))
    if set(STAGES) <= set(children):
        return STAGES
    return children


def noise_image(height: int, width: int) -> dict:
    """Return a detector's input, the same on each call: a (3, H, W) uint8 image of noise."""
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=generator)
    return {"image": image, "height": height, "width": width}


@torch.no_grad()
def count_flops(model: nn.Module, height: int, width: int) -> ModelCost:
    """Count with fvcore what one image costs in evaluation, on the CPU.

    fvcore's "flops" are multiply-accumulates. Its activations are the outputs of convolutions and
    matrix products.

    Args:
        model: detector with detectron2's inputs and outputs; it is put into evaluation mode.
        height, width: of the image in pixels.
    """
    traced = TensorInterface(model).eval()
    image = noise_image(height, width)["image"]
    macs = FlopCountAnalysis(traced, image)
    activations = ActivationCountAnalysis(traced, image)
    for name in ATTENTION:
        macs.set_op_handle(name, attention_macs)
        activations.set_op_handle(name, attention_activations)

    for analysis in (macs, activations):
        analysis.unsupported_ops_warnings(False)
        analysis.uncalled_modules_warnings(False)

    # Both analyses trace the model when they are first asked.
    with countable_operators():
        macs_by_module = macs.by_module()
        activations_by_module = activations.by_module()

    # fvcore names modules from its input on, which is the wrapper; "" is the whole.
    names = {stage: f"model.{stage}" for stage in stages_of(model)} | {"total": ""}
    rows = []
    for stage, name in names.items():
        parameters = sum(p.numel() for p in traced.get_submodule(name).parameters())
        row = StageCost(
            stage=stage,
            parameters=parameters / 1e6,
            gmacs=macs_by_module[name] / 1e9,
            activations=activations_by_module[name] / 1e6,
        )
        rows.append(row)

    # Cheap operators without a count are no loss; costly ones are reported.
    uncounted: Counter[str] = Counter()
    for name, calls in macs.unsupported_ops().items():
        if "CallFunction" in name:
            uncounted[SCRIPTED] += calls
        elif COSTLY.search(name):
            uncounted[name] += calls
    return ModelCost(rows, uncounted)


@contextmanager
def countable_operators() -> Iterator[None]:
    """Run attention by operators that fvcore knows."""
    # The fast path of nn.MultiheadAttention is one operator, and so is our compiled one.
    fastpath = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with patch.object(ms_deform_attn, "is_compiled_for", lambda _: False):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fastpath)


def attention_macs(inputs: list, outputs: list) -> Counter[str]:
    """Count the multiply-accumulates of QK^T and of the weighted sum of V."""
    query = inputs[0].type().sizes()
    key = inputs[1].type().sizes()
    return Counter({"attention": 2 * math.prod(query) * key[-2]})


def attention_activations(inputs: list, outputs: list) -> Counter[str]:
    """Count the elements of QK^T and of the weighted sum of V."""
    query = inputs[0].type().sizes()
    key = inputs[1].type().sizes()
    return Counter({"attention": math.prod(query[:-1]) * key[-2] + math.prod(query)})
