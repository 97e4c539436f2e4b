"""The CUDA kernels, run thread by thread on the CPU, against the PyTorch reference."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from salience_detr.layers.ms_deform_attn import (
    ms_deform_attn_reference,
    sampling_locations_from_offsets,
)

HERE = Path(__file__).parent
SIZES = (
    "batch",
    "queries",
    "heads",
    "tokens",
    "levels",
    "points",
    "channels",
    "reference_levels",
    "reference_dims",
)
TENSORS = ("shapes", "starts", "value", "reference_points", "offsets", "weights")


class Problem(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int64) for name in SIZES] + [
        (name, ctypes.c_void_p) for name in TENSORS
    ]


class Gradients(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_void_p)
        for name in ("output", "value", "reference_points", "offsets", "weights")
    ]


@pytest.fixture(scope="module")
def kernels(tmp_path_factory):
    compiler = shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    library = tmp_path_factory.mktemp("kernels") / "kernels.so"
    command = [
        compiler,
        "-std=c++17",
        "-O1",
        "-shared",
        "-fPIC",
        HERE / "cuda_kernels_on_host.cpp",
        "-o",
        library,
    ]
    subprocess.run(command, check=True, capture_output=True)
    return ctypes.CDLL(str(library))


def case(*, channels, dims, reference_levels=3, points=2):
    """Make levels of 3x4, 0x5 and 1x1, offsets beyond all sides, and a prime number of queries."""
    torch.manual_seed(0)
    shapes, starts = torch.tensor([[3, 4], [0, 5], [1, 1]]), torch.tensor([0, 12, 12])
    batch, queries, heads, tokens, levels = 2, 7, 3, 13, 3
    options = {"dtype": torch.float64, "requires_grad": True}
    reference = torch.rand(batch, queries, reference_levels, max(dims, 2), dtype=torch.float64)
    offsets = torch.randn(batch, queries, heads, levels, points, 2, dtype=torch.float64) * 2
    if dims == 0:
        offsets = offsets * 0.3 + 0.5
    offsets[0, 0, 0, 0, 0, 0], offsets[1, 2, 1, 0, 0] = float("nan"), 1e30
    return {
        "shapes": shapes,
        "starts": starts,
        "value": torch.randn(batch, tokens, heads, channels, **options),
        "reference_points": reference.requires_grad_(),
        "offsets": offsets.requires_grad_(),
        "weights": torch.randn(batch, queries, heads, levels, points, **options),
        "dims": dims,
    }


def expected_output(inputs):
    locations, weights = inputs["offsets"], inputs["weights"]
    # Anything far away, because the gradient of a box is a product with the offset.
    locations = torch.where(locations.abs() < 1e6, locations, -1e4)
    if inputs["dims"]:
        locations = sampling_locations_from_offsets(
            inputs["reference_points"], locations, inputs["shapes"]
        )
        weights = weights.flatten(3).softmax(-1).view_as(weights)
    output = ms_deform_attn_reference(
        inputs["value"], inputs["shapes"], inputs["starts"], locations, weights
    )
    return output.contiguous()


def as_problem(inputs):
    value, offsets, reference = inputs["value"], inputs["offsets"], inputs["reference_points"]
    sizes = (
        value.shape[0],
        offsets.shape[1],
        value.shape[2],
        value.shape[1],
        *offsets.shape[3:5],
        value.shape[3],
    )
    return Problem(
        *sizes, reference.shape[2], inputs["dims"], *(inputs[name].data_ptr() for name in TENSORS)
    )


@pytest.mark.parametrize("variant", ["vector", "scalar", "narrow"])
@pytest.mark.parametrize(
    "options",
    [
        {"dims": 2, "channels": 32},
        {"dims": 4, "channels": 12, "reference_levels": 1, "points": 6},
        {"dims": 0, "channels": 34, "points": 3},
    ],
    ids=["points", "boxes", "locations"],
)
def test_every_thread_computes_its_part(kernels, variant, options):
    inputs = case(**options)
    output = expected_output(inputs)
    problem, found = as_problem(inputs), torch.full_like(output, float("nan"))
    getattr(kernels, f"forward_{variant}")(ctypes.byref(problem), ctypes.c_void_p(found.data_ptr()))
    torch.testing.assert_close(found, output, atol=1e-12, rtol=1e-12)

    names = ["value", "offsets", "weights"] + (["reference_points"] if inputs["dims"] else [])
    grad_output = torch.randn_like(output)
    expected = dict(
        zip(
            names,
            torch.autograd.grad(output, [inputs[name] for name in names], grad_output),
            strict=True,
        )
    )
    run = getattr(kernels, f"backward_{variant}")
    for left_out in (None, *names):  # null pointers for gradients that nobody asked for
        grads = run_backward(
            run, problem, inputs, grad_output, [name for name in names if name != left_out]
        )
        for name, found in grads.items():
            torch.testing.assert_close(found, expected[name], atol=1e-11, rtol=1e-11, msg=name)


def run_backward(run, problem, inputs, grad_output, names):
    grads = {name: torch.zeros_like(inputs[name]) for name in names}
    for name in {"offsets", "weights"} & set(names):
        grads[name].fill_(float("nan"))  # the kernel writes each of these, also outside the map
    pointers = [
        grads[name].data_ptr() if name in grads else None
        for name in ("value", "reference_points", "offsets", "weights")
    ]
    run(ctypes.byref(problem), ctypes.byref(Gradients(grad_output.data_ptr(), *pointers)))
    return grads
