"""Time the compiled deformable-attention operator against the PyTorch reference."""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from tqdm import tqdm

from salience_detr.benchmark.original_operator import has_original, original
from salience_detr.benchmark.report import PrintedTable, machine
from salience_detr.benchmark.timing import time_calls
from salience_detr.cli.arguments import run_program
from salience_detr.cli.flags.benchmark_op import parse_args
from salience_detr.config import resolve_device
from salience_detr.layers import ms_deform_attn as attention
from salience_detr.layers.operator import is_compiled_for
from salience_detr.utils.files import check_result_path, write_text

# Levels of a padded 800x1333 image at strides 8 to 64, and 128 for the models of 5 levels.
LEVELS = ((100, 167), (50, 84), (25, 42), (13, 21), (7, 11))
NUM_HEADS = 8
HEAD_DIM = 32
NUM_POINTS = 4


COLUMNS = {
    "shape": 38,
    "pass": 8,
    "operator": 9,
    "minimum (ms)": 12,
    "median (ms)": 11,
    "speed-up": 8,
    "peak (MiB)": 10,
}


@dataclass(frozen=True)
class Shape:
    """Sizes of a deformable attention's inputs.

    Attributes:
        name: name in the table.
        queries: number of queries.
        batch: number of images.
        levels: (height, width) of each feature level.
        reference_dim: 2 for reference points, 4 for reference boxes.
    """

    name: str
    queries: int
    batch: int = 1
    levels: tuple[tuple[int, int], ...] = LEVELS[:4]
    reference_dim: int = 2


SHAPES = (
    Shape("encoder layer 0, 800x1333", 11363),
    Shape("decoder, 900 queries", 900, reference_dim=4),
    Shape("decoder, 1100 queries (with denoising)", 1100, reference_dim=4),
    Shape("encoder layer 0, batch 2", 11363, batch=2),
    Shape("encoder layer 0, 5 levels", 11400, levels=LEVELS),
    Shape("small maps, 256x256", 450, levels=((32, 32), (16, 16), (8, 8), (4, 4))),
)


def make_inputs(shape: Shape, device: str, dtype: torch.dtype) -> list[Tensor]:
    """Return inputs of ``ms_deform_attn_fused`` that are like a trained model's.

    Where samples lie decides how well caches work, so uniform noise would be no fair measure.
    """
    generator = torch.Generator().manual_seed(0)
    spatial_shapes = torch.tensor(shape.levels)
    level_sizes = spatial_shapes.prod(1)
    num_levels = len(shape.levels)
    value_shape = (shape.batch, int(level_sizes.sum()), NUM_HEADS, HEAD_DIM)
    samples_shape = (shape.batch, shape.queries, NUM_HEADS, num_levels, NUM_POINTS)

    # Queries follow the rows of the image, as its tokens do.
    centers = torch.rand(shape.batch, shape.queries, 1, 2, generator=generator)
    order = ((centers[..., 1] * 100).floor() + centers[..., 0]).squeeze(-1).argsort(1)
    centers = centers.gather(1, order[..., None, None].expand(-1, -1, 1, 2))
    references = centers.expand(-1, -1, num_levels, -1)
    if shape.reference_dim == 4:
        box_sizes = torch.rand(references.shape, generator=generator) * 0.3
        references = torch.cat([references, box_sizes], -1)

    # Most samples of a trained model lie within a few tokens of their reference point.
    value = torch.randn(value_shape, generator=generator)
    offsets = 2 * torch.randn(*samples_shape, 2, generator=generator)
    logits = torch.randn(samples_shape, generator=generator)
    inputs = [
        value.to(device, dtype),
        spatial_shapes.to(device),
        (level_sizes.cumsum(0) - level_sizes).to(device),
        references.to(device),
        offsets.to(device, dtype),
        logits.to(device, dtype),
    ]
    return [x.contiguous() for x in inputs]


def unfused(
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    references: Tensor,
    offsets: Tensor,
    logits: Tensor,
) -> Tensor:
    """Compute locations and softmax with PyTorch, and sample with the operator."""
    locations = attention.sampling_locations_from_offsets(references, offsets, spatial_shapes)
    weights = logits.flatten(-2).softmax(-1).view_as(logits)
    return attention.ms_deform_attn(value, spatial_shapes, level_start_index, locations, weights)


IMPLEMENTATIONS: dict[str, Callable[..., Tensor]] = {
    "reference": attention.ms_deform_attn_fused_reference,
    "fused": attention.ms_deform_attn_fused,
    "unfused": unfused,
}


def peak_mebibytes(step: Callable[[], object], device: str) -> float:
    """Return the most memory that a call holds at once, beyond what was held before it."""
    if device == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step()
        return (torch.cuda.max_memory_allocated() - before) / 2**20

    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        step()

    # Allocations count as positive bytes, frees as negative ones.
    held = 0
    peak = 0
    events = profile.profiler.kineto_results.events()
    for event in sorted(events, key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak / 2**20


def implementations(device: str, dtype: torch.dtype) -> dict[str, Callable[..., Tensor]]:
    """Return all that can be timed on a device; the original extension where it is installed."""
    if device == "cuda" and has_original(dtype):
        return {**IMPLEMENTATIONS, "original": original}
    return IMPLEMENTATIONS


def make_steps(
    inputs: list[Tensor], functions: dict[str, Callable[..., Tensor]]
) -> dict[tuple[str, str], Callable[[], object]]:
    """Return functions of forward and backward passes by (implementation, direction)."""
    leaves = [x.clone().requires_grad_(x.is_floating_point()) for x in inputs]
    leaves[3].requires_grad_(False)  # reference points get no gradient in the model
    differentiated = [leaf for leaf in leaves if leaf.requires_grad]

    steps: dict[tuple[str, str], Callable[[], object]] = {}
    for name, implementation in functions.items():
        output = implementation(*leaves)
        grad = torch.randn(output.shape, generator=torch.Generator().manual_seed(1)).to(output)

        # The graph is kept, so that a backward pass can be timed again and again.
        steps[name, "forward"] = partial(torch.no_grad()(implementation), *inputs)
        steps[name, "backward"] = partial(
            torch.autograd.grad, output, differentiated, grad, retain_graph=True
        )
    return steps


def measure(shape: Shape, device: str, dtype: torch.dtype, repeats: int) -> list[dict]:
    """Return a row of the table for each implementation and pass; the first turn warms up."""
    steps = make_steps(make_inputs(shape, device, dtype), implementations(device, dtype))
    milliseconds: dict[tuple[str, str], list[float]] = {key: [] for key in steps}
    for turn in range(repeats + 1):
        for key, step in steps.items():
            times = time_calls(step, 1)
            if turn > 0:
                milliseconds[key] += times

    # Disturbances only ever add time, so minima are compared.
    rows = []
    for (name, direction), times in milliseconds.items():
        reference = min(milliseconds["reference", direction])
        row = {
            "shape": shape.name,
            "pass": direction,
            "operator": name,
            "minimum (ms)": min(times),
            "median (ms)": statistics.median(times),
            "speed-up": reference / min(times),
            "peak (MiB)": peak_mebibytes(steps[name, direction], device),
        }
        rows.append(row)
    return rows


def run(args: argparse.Namespace) -> None:
    """Print a table of all shapes, passes and implementations, and write its rows."""
    check_result_path(args.json, "--json")
    device = resolve_device(args.device).type
    if not is_compiled_for(device):
        remedy = "python ops/build.py builds it, or says why it cannot"
        raise ValueError(f"the operator is not compiled for {device}; {remedy}")

    circumstances = f"PyTorch {torch.__version__}, {args.repeats} turns"
    print(f"{args.dtype} on {machine(device)}, {circumstances}\n")

    # Each shape as soon as it is measured.
    rows = []
    table = PrintedTable(COLUMNS)
    for index in tqdm(args.shapes, desc="shapes"):
        for row in measure(SHAPES[index], device, getattr(torch, args.dtype), args.repeats):
            table.add(list(row.values()))
            rows.append(row)
    if args.json:
        write_text(args.json, json.dumps(rows, indent=1))


def main(argv: list[str] | None = None) -> int:
    return run_program(run, parse_args(argv))
