"""Parameters, multiply-accumulates and activations of a model, by stage."""

from __future__ import annotations

import logging
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
# Operators that cost more than plain arithmetic; those of them that fvcore does not know are reported.
COSTLY = re.compile(r"^(?!aten::|prim::)|CallFunction|mm|conv|attention|sampl|linear|einsum")
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
    """A detector as a function of tensors, which is what fvcore can trace."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """(3, H, W) image -> (N, 4) boxes, absolute xyxy, and (N,) scores."""
        instances = self.model([{"image": image}])[0]["instances"]
        return instances.pred_boxes.tensor, instances.scores


def stages_of(model: nn.Module) -> tuple[str, ...]:
    """Return :data:`STAGES`, or the names of all children of a model of another architecture."""
    children = tuple(name for name, _ in model.named_children())
    return STAGES if set(STAGES) <= set(children) else children


def noise_image(height: int, width: int) -> dict:
    """Return the same input of noise on each call: ``image`` (3, H, W) uint8, height, width."""
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

    # Both analyses trace the model when they are first asked.
    with countable_operators():
        macs_by_module = macs.by_module()
        activations_by_module = activations.by_module()

    rows = []
    for stage in (*stages_of(model), ""):
        parameters = sum(p.numel() for p in model.get_submodule(stage).parameters())
        name = f"model.{stage}" if stage else ""
        gmacs = macs_by_module[name] / 1e9
        rows.append(
            StageCost(stage or "total", parameters / 1e6, gmacs, activations_by_module[name] / 1e6)
        )

    # Cheap operators without a count are no loss; costly ones are reported.
    uncounted: Counter[str] = Counter()
    for name, calls in macs.unsupported_ops().items():
        if COSTLY.search(name):
            uncounted[SCRIPTED if "CallFunction" in name else name] += calls
    return ModelCost(rows, uncounted)


@contextmanager
def countable_operators() -> Iterator[None]:
    """Run attention by operators that fvcore knows, without fvcore's warnings."""
    logger = logging.getLogger("fvcore")
    level = logger.level
    fastpath = torch.backends.mha.get_fastpath_enabled()

    logger.setLevel(logging.ERROR)
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with patch.object(ms_deform_attn, "is_compiled_for", lambda _: False):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fastpath)
        logger.setLevel(level)


def attention_macs(inputs: list, outputs: list) -> Counter[str]:
    """Count QK^T and the weighted sum of V, which fvcore does not know."""
    query = inputs[0].type().sizes()
    key = inputs[1].type().sizes()
    return Counter({"attention": 2 * math.prod(query) * key[-2]})


def attention_activations(inputs: list, outputs: list) -> Counter[str]:
    """Count the numbers that QK^T and the weighted sum of V give."""
    query = inputs[0].type().sizes()
    key = inputs[1].type().sizes()
    return Counter({"attention": math.prod(query[:-1]) * key[-2] + math.prod(query)})
