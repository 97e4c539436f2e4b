#!/usr/bin/env python
"""Count the parameters, multiply-accumulates (GMACs) and activations of configs' models, by stage, with fvcore."""

from __future__ import annotations

import argparse
import logging
import math
import sys
from collections import Counter
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from detectron2.config import instantiate
from fvcore.nn import ActivationCountAnalysis, FlopCountAnalysis
from tabulate import tabulate
from torch import nn
from tqdm import tqdm

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
        """(3, H, W) picture -> boxes and scores"""
        instances = self.model([{"image": image}])[0]["instances"]
        return instances.pred_boxes.tensor, instances.scores


def analyses(model: nn.Module, height: int, width: int) -> tuple[FlopCountAnalysis, ActivationCountAnalysis]:
    """fvcore's counts for one picture of the given size in evaluation.

    Its "flops" are MACs, its activations the numbers that convolutions and matrix products give.
    """
    image = torch.zeros(3, height, width, dtype=torch.uint8)
    torch.backends.mha.set_fastpath_enabled(False)  # a fused operator that fvcore does not know
    traceable = Traceable(model).eval()
    macs, activations = FlopCountAnalysis(traceable, image), ActivationCountAnalysis(traceable, image)
    for name in ("scaled_dot_product_attention", "_scaled_dot_product_flash_attention_for_cpu"):
        macs.set_op_handle(f"aten::{name}", attention_macs)
        activations.set_op_handle(f"aten::{name}", attention_activations)
    for analysis in (macs, activations):
        analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
    return macs, activations


def count(model: nn.Module, height: int, width: int) -> list[tuple[str, float, float, float]]:
    """For each stage and for the whole: name, parameters in millions, GMACs, activations in millions."""
    # In the PyTorch form fvcore sees what is computed.
    with torch.no_grad(), patch.object(ms_deform_attn, "is_compiled_for", lambda _: False):
        macs, activations = (analysis.by_module() for analysis in analyses(model, height, width))
    rows = []
    for stage in (*STAGES, ""):
        parameters = sum(p.numel() for p in model.get_submodule(stage).parameters())
        name = f"model.{stage}" if stage else ""
        rows.append((stage or "total", parameters / 1e6, macs[name] / 1e9, activations[name] / 1e6))
    return rows


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config-file", required=True, action="append", metavar="FILE", help="may be repeated")
    parser.add_argument("--size", type=int, nargs=2, default=(800, 1333), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("opts", nargs="*", metavar="key=value", help="overrides of the configs")
    args = parser.parse_intermixed_args(argv)
    logging.getLogger("fvcore").setLevel(logging.ERROR)
    headers = ("parameters (M)", "GMACs", "activations (M)")
    totals = []
    for config_file in tqdm(args.config_file, desc="models", disable=len(args.config_file) == 1):
        try:
            model = instantiate(load_config(config_file, args.opts).model)
        except (ConfigError, ValueError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        rows = count(model, *args.size)
        print(f"{config_file} at {args.size[0]}x{args.size[1]}")
        print(tabulate(rows, headers=("stage", *headers), floatfmt=".2f", tablefmt="github"), end="\n\n", flush=True)
        totals.append((Path(config_file).stem, *rows[-1][1:]))
    if len(totals) > 1:
        print(tabulate(totals, headers=("config", *headers), floatfmt=".1f", tablefmt="github"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
