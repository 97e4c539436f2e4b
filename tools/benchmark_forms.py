#!/usr/bin/env python
"""Time a config's model by stage, in evaluation and in a training step, with and without the compiled operator."""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from operator import attrgetter
from typing import Any
from unittest.mock import patch

import torch
from detectron2.config import instantiate
from detectron2.structures import Boxes, Instances
from tabulate import tabulate
from torch import nn
from tqdm import tqdm

from salience_detr.benchmark.profiling import STAGES, Clock, noise_image, stage_times
from salience_detr.config import ConfigError, load_config
from salience_detr.layers import ms_deform_attn as attention
from salience_detr.layers.operator import is_compiled_for

OURS = "ms_deform_attn (ours, all of it)"
OPERATORS: dict[str, Callable[[], Any]] = {
    "compiled": nullcontext,
    "PyTorch": lambda: patch.object(attention, "is_compiled_for", lambda _: False),
}


def image(size: tuple[int, int], num_classes: int, boxes: int = 8) -> dict[str, Any]:
    """An image of noise with boxes in a row, as the mapper gives it."""
    height, width = size
    instances = Instances((height, width))
    left = torch.arange(boxes) * (width / boxes)
    corners = torch.stack(
        [left, left * 0 + height / 4, left + width / boxes, left * 0 + height / 2], dim=1
    )
    instances.gt_boxes, instances.gt_classes = Boxes(corners), torch.arange(boxes) % num_classes
    return {**noise_image(height, width), "instances": instances}


def evaluation(
    model: nn.Module, inputs: list[dict[str, Any]], precision: Callable[[], Any]
) -> Callable[[], None]:
    @torch.no_grad()
    def step() -> None:
        with precision():
            model(inputs)

    return step


def training(
    model: nn.Module, inputs: list[dict[str, Any]], precision: Callable[[], Any]
) -> Callable[[], None]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)

    def step() -> None:
        optimizer.zero_grad()
        with precision():
            losses = model(inputs)
        sum(losses.values()).backward()
        optimizer.step()

    return step


def measure(
    model: nn.Module, steps: dict[str, Callable[[], None]], clock: Clock, device: str, repeats: int
) -> tuple[list[dict[str, Any]], dict[str, dict[str, float]]]:
    """Rows for the whole model and the times of its stages; both forms take turns."""
    times: dict[tuple[str, str], list[float]] = {}
    stages: dict[str, dict[str, float]] = {form: {} for form in OPERATORS}
    peaks: dict[tuple[str, str], float] = {}
    for turn in tqdm(range(repeats + 1), desc="turns"):
        for form, operator in OPERATORS.items():
            for name, step in steps.items():
                model.train(name == "training step")
                if device == "cuda":
                    torch.cuda.reset_peak_memory_stats()
                record: dict[str, float] = {}
                with operator(), stage_times(model, clock, record):
                    begin = clock()
                    step()
                    elapsed = (clock() - begin) * 1e3
                if not turn:  # the first warms up
                    continue
                times.setdefault((name, form), []).append(elapsed)
                if device == "cuda":
                    peaks[name, form] = torch.cuda.max_memory_allocated() / 2**20
                if name == "evaluation":
                    for stage, value in record.items():
                        stages[form].setdefault(stage, value)
                        stages[form][stage] = min(stages[form][stage], value)
    rows = []
    for (name, form), values in times.items():
        row = {
            "step": name,
            "operator": form,
            "minimum (ms)": min(values),
            "median (ms)": statistics.median(values),
            "speed-up": min(times[name, "PyTorch"]) / min(values),
        }
        rows.append(row | ({"peak (MiB)": peaks[name, form]} if peaks else {}))
    return rows, stages


def own_times(step: Callable[[], None], device: str) -> Counter[str]:
    """Milliseconds that each PyTorch operator takes in one step, without those that it calls."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profile:
        step()
    time_of = attrgetter("self_device_time_total" if device == "cuda" else "self_cpu_time_total")
    times: Counter[str] = Counter()
    for event in profile.key_averages():
        # Its gradient, and what autograd wraps around both, have names of their own.
        times[OURS if "ms_deform_attn" in event.key else event.key] += time_of(event) / 1e3
    return times


def profile_by_operator(
    model: nn.Module, steps: dict[str, Callable[[], None]], device: str, rows: int = 8
) -> dict[str, list[dict[str, Any]]]:
    """For each step the operators that take most of it in either form, and the attention's own."""
    tables = {}
    for name, step in steps.items():
        model.train(name == "training step")
        times: dict[str, Counter[str]] = {}
        for form, operator in OPERATORS.items():
            with operator():
                times[form] = own_times(step, device)
        longest: Counter[str] = Counter()
        for own in times.values():
            longest |= own
        chosen = [OURS, *(key for key, _ in longest.most_common(rows))]
        tables[name] = [
            {f"operator ({name})": key, **{f"{form} (ms)": times[form][key] for form in OPERATORS}}
            for key in dict.fromkeys(chosen)
        ]
    return tables


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--config-file", default="configs/salience_detr_r50_4scale_12ep.py", metavar="FILE"
    )
    parser.add_argument(
        "--size", type=int, nargs=2, default=(800, 1333), metavar=("HEIGHT", "WIDTH")
    )
    parser.add_argument(
        "--train-size", type=int, nargs=2, default=(512, 640), metavar=("HEIGHT", "WIDTH")
    )
    parser.add_argument("--train-batch", type=int, default=2)
    parser.add_argument("--no-training", action="store_true", help="time evaluation only")
    parser.add_argument(
        "--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=("cpu", "cuda")
    )
    parser.add_argument(
        "--dtype", default="float32", choices=("float32", "bfloat16", "float16"), help="by autocast"
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", metavar="FILE", help="also write the figures there")
    parser.add_argument("opts", nargs="*", metavar="key=value", help="overrides of the config")
    args = parser.parse_intermixed_args(argv)
    if not is_compiled_for(args.device):
        print(f"error: the operator is not compiled for {args.device}", file=sys.stderr)
        return 1
    try:
        config = load_config(args.config_file, args.opts)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    torch.manual_seed(0)
    model = instantiate(config.model).to(args.device)
    dtype = getattr(torch, args.dtype)

    def precision() -> Any:
        return nullcontext() if dtype == torch.float32 else torch.autocast(args.device, dtype=dtype)

    classes = config.model.num_classes
    steps = {"evaluation": evaluation(model, [image(args.size, classes)], precision)}
    if not args.no_training:
        batch = [image(args.train_size, classes) for _ in range(args.train_batch)]
        steps["training step"] = training(model, batch, precision)
    rows, stages = measure(model, steps, Clock(args.device), args.device, args.repeats)
    device = (
        torch.cuda.get_device_name()
        if args.device == "cuda"
        else f"{torch.get_num_threads()} CPU threads"
    )
    print(
        f"{args.config_file}, {args.dtype} on {device}, PyTorch {torch.__version__}: evaluation of {args.size[0]}x"
        f"{args.size[1]}, training step of {args.train_batch}x{args.train_size[0]}x{args.train_size[1]}\n"
    )
    print(tabulate(rows, headers="keys", floatfmt=".1f", tablefmt="github"))
    by_stage = [
        {"stage (evaluation)": s, **{f"{f} (ms)": stages[f][s] for f in OPERATORS}} for s in STAGES
    ]
    print("\n" + tabulate(by_stage, headers="keys", floatfmt=".1f", tablefmt="github"))
    operators = profile_by_operator(model, steps, args.device)
    for table in operators.values():
        print("\n" + tabulate(table, headers="keys", floatfmt=".1f", tablefmt="github"))
    if args.json:
        with open(args.json, "w") as file:
            json.dump({"steps": rows, "stages": stages, "operators": operators}, file, indent=1)
    return 0


if __name__ == "__main__":
    sys.exit(main())
