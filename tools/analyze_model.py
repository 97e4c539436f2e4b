#!/usr/bin/env python
"""Count the parameters and multiply-accumulates (GMACs) of a config's model, by stage, with fvcore."""

from __future__ import annotations

import argparse
import logging
import math
import sys
from collections import Counter
from typing import Any
from unittest.mock import patch

import torch
from detectron2.config import instantiate
from fvcore.nn import FlopCountAnalysis
from tabulate import tabulate
from torch import nn

from salience_detr.engine.config import ConfigError, load_config
from salience_detr.layers import ms_deform_attn

# In the order of the data.
STAGES = (
    "backbone", "neck", "token_pyramid", "token_projection", "salience_filter", "encoder", "feature_fusion",
    "query_selection", "decoder",
)  # fmt: skip


def attention_macs(inputs: list[Any], outputs: list[Any]) -> Counter[str]:
    """MACs of scaled dot-product attention, which fvcore does not know: QK^T and the weighted sum of V."""
    query, key = inputs[0].type().sizes(), inputs[1].type().sizes()
    return Counter({"attention": 2 * math.prod(query) * key[-2]})


class Traceable(nn.Module):
    """The model as tensors in, tensors out, which tracing asks for."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(3, H, W) picture -> boxes and scores"""
        instances = self.model([{"image": image}])[0]["instances"]
        return instances.pred_boxes.tensor, instances.scores


def count(model: nn.Module, height: int, width: int) -> FlopCountAnalysis:
    """fvcore's analysis of one picture of the given size in evaluation; its "flops" are MACs."""
    image = torch.zeros(3, height, width, dtype=torch.uint8)
    torch.backends.mha.set_fastpath_enabled(False)  # a fused operator that fvcore does not know
    analysis = FlopCountAnalysis(Traceable(model).eval(), image)
    for name in ("scaled_dot_product_attention", "_scaled_dot_product_flash_attention_for_cpu"):
        analysis.set_op_handle(f"aten::{name}", attention_macs)
    return analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config-file", required=True, metavar="FILE")
    parser.add_argument("--size", type=int, nargs=2, default=(800, 1333), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("opts", nargs="*", metavar="key=value", help="overrides of the config")
    args = parser.parse_intermixed_args(argv)
    logging.getLogger("fvcore").setLevel(logging.ERROR)
    try:
        model = instantiate(load_config(args.config_file, args.opts).model)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    # In the PyTorch form fvcore sees what is computed.
    with torch.no_grad(), patch.object(ms_deform_attn, "is_compiled_for", lambda _: False):
        macs = count(model, *args.size).by_module()
    rows = []
    for stage in STAGES:
        parameters = sum(p.numel() for p in model.get_submodule(stage).parameters())
        rows.append((stage, parameters / 1e6, macs[f"model.{stage}"] / 1e9))
    rows.append(("total", sum(p.numel() for p in model.parameters()) / 1e6, macs[""] / 1e9))
    print(f"{args.config_file} at {args.size[0]}x{args.size[1]}")
    print(tabulate(rows, headers=("stage", "parameters (M)", "GMACs"), floatfmt=".2f", tablefmt="github"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
