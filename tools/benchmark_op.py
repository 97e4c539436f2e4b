#!/usr/bin/env python
"""Time the compiled deformable-attention operator against its PyTorch form, forward and backward, with peak memory."""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from tabulate import tabulate
from torch import Tensor
from tqdm import tqdm

from salience_detr.layers import ms_deform_attn as attention
from salience_detr.layers.operator import is_compiled_for

# Levels of a padded 800x1333 image at strides 8 to 64, and of stride 128 besides.
LEVELS = [(100, 167), (50, 84), (25, 42), (13, 21), (7, 11)]


@dataclass(frozen=True)
class Shape:
    """What is attended: queries at random points, or boxes, of levels of the given sizes."""

    name: str
    queries: int
    batch: int = 1
    levels: tuple[tuple[int, int], ...] = tuple(LEVELS[:4])
    dims: int = 2


SHAPES = (
    Shape("encoder layer 0, 800x1333", 11363),
    Shape("decoder, 900 queries", 900, dims=4),
    Shape("decoder, 1100 queries (with denoising)", 1100, dims=4),
    Shape("encoder layer 0, batch 2", 11363, batch=2),
    Shape("encoder layer 0, 5 levels", 11400, levels=tuple(LEVELS)),
    Shape("small maps, 256x256", 450, levels=((32, 32), (16, 16), (8, 8), (4, 4))),
)


def make_inputs(shape: Shape, device: str, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Inputs of the fused form, 8 heads of 32 channels and 4 points, with offsets as a trained model has them."""
    generator = torch.Generator().manual_seed(0)
    shapes = torch.tensor(shape.levels)
    sizes = shapes.prod(1)
    grid = (shape.batch, shape.queries, 8, len(shape.levels), 4)
    centers = torch.rand(shape.batch, shape.queries, 1, 2, generator=generator)
    # In the order of their places, as the tokens of an image are.
    order = ((centers[..., 1] * 100).floor() + centers[..., 0]).squeeze(-1).argsort(1)
    centers = centers.gather(1, order[..., None, None].expand(-1, -1, 1, 2)).expand(
        -1, -1, len(shape.levels), -1
    )
    box_sizes = (
        torch.rand(centers.shape, generator=generator) * 0.3
        if shape.dims == 4
        else centers[..., :0]
    )
    tensors = (
        torch.randn(shape.batch, int(sizes.sum()), 8, 32, generator=generator).to(device, dtype),
        shapes.to(device),
        (sizes.cumsum(0) - sizes).to(device),
        torch.cat([centers, box_sizes], -1).to(device),
        (2 * torch.randn(*grid, 2, generator=generator)).to(device, dtype),
        torch.randn(*grid, generator=generator).to(device, dtype),
    )
    return tuple(x.contiguous() for x in tensors)


def timed(step: Callable[[], object], device: str) -> float:
    """Milliseconds of one call."""
    if device == "cuda":
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        step()
        end.record()
        torch.cuda.synchronize()
        return start.elapsed_time(end)
    begin = time.perf_counter()
    step()
    return (time.perf_counter() - begin) * 1e3


def peak_megabytes(step: Callable[[], object], device: str) -> float:
    """Most memory that a call holds at once, above what was held before."""
    if device == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        step()
    held = peak = 0
    for event in sorted(
        (event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"),
        key=lambda event: event.start_ns(),
    ):
        held += event.nbytes()
        peak = max(peak, held)
    return peak / 2**20


def unfused(
    value: Tensor,
    shapes: Tensor,
    starts: Tensor,
    reference: Tensor,
    offsets: Tensor,
    logits: Tensor,
) -> Tensor:
    """Locations and softmax by PyTorch, sampling by the operator."""
    locations = attention.sampling_locations_from_offsets(reference, offsets, shapes)
    weights = logits.flatten(-2).softmax(-1).view_as(logits)
    return attention.ms_deform_attn(value, shapes, starts, locations, weights)


FORMS: dict[str, Callable[..., Tensor]] = {
    "PyTorch": attention.ms_deform_attn_fused_reference,
    "fused": attention.ms_deform_attn_fused,
    "unfused": unfused,
}


def measure(shape: Shape, device: str, dtype: torch.dtype, repeats: int) -> list[dict[str, object]]:
    """A row for each form; their calls take turns, so that all meet the same disturbances."""
    inputs = make_inputs(shape, device, dtype)
    leaves = [x.clone().requires_grad_(x.is_floating_point()) for x in inputs]
    leaves[3].requires_grad_(False)  # references get no gradient in the model
    wanted = [x for x in leaves if x.requires_grad]
    outputs = {name: form(*leaves) for name, form in FORMS.items()}
    grad = torch.randn_like(outputs["fused"])
    steps: dict[tuple[str, str], Callable[[], object]] = {}
    for name, form in FORMS.items():
        steps[name, "forward"] = partial(without_gradients, form, inputs)
        steps[name, "backward"] = partial(
            torch.autograd.grad, outputs[name], wanted, grad, retain_graph=True
        )
    times: dict[tuple[str, str], list[float]] = {key: [] for key in steps}
    for turn in range(repeats + 1):
        for key, step in steps.items():
            elapsed = timed(step, device)
            if turn:  # the first warms up
                times[key].append(elapsed)
    rows = []
    for (name, way), values in times.items():
        base = min(times["PyTorch", way])
        rows.append(
            {
                "shape": shape.name,
                "pass": way,
                "form": name,
                "minimum (ms)": min(values),
                "median (ms)": statistics.median(values),
                "speed-up": base / min(values),
                "peak (MiB)": peak_megabytes(steps[name, way], device),
            }
        )
    return rows


@torch.no_grad()
def without_gradients(form: Callable[..., Tensor], inputs: tuple[Tensor, ...]) -> Tensor:
    return form(*inputs)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=("cpu", "cuda")
    )
    parser.add_argument(
        "--dtype", default="float32", choices=("float64", "float32", "float16", "bfloat16")
    )
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument(
        "--shapes", nargs="*", type=int, default=range(len(SHAPES)), help="numbers of the shapes"
    )
    parser.add_argument("--json", metavar="FILE", help="also write the rows there")
    args = parser.parse_args(argv)
    if not is_compiled_for(args.device):
        print(f"error: the operator is not compiled for {args.device}", file=sys.stderr)
        return 1
    rows = []
    for index in tqdm(args.shapes, desc="shapes"):
        rows += measure(SHAPES[index], args.device, getattr(torch, args.dtype), args.repeats)
    device = (
        torch.cuda.get_device_name()
        if args.device == "cuda"
        else f"{torch.get_num_threads()} CPU threads"
    )
    print(f"{args.dtype} on {device}, PyTorch {torch.__version__}, {args.repeats} turns")
    print(tabulate(rows, headers="keys", floatfmt=".2f", tablefmt="github"))
    if args.json:
        with open(args.json, "w") as file:
            json.dump(rows, file, indent=1)
    return 0


if __name__ == "__main__":
    sys.exit(main())
