"""The CUDA kernels, run thread by thread on the CPU, against the PyTorch reference."""

from __future__ import annotations

import ctypes
import mmap
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from salience_detr.layers.ms_deform_attn import (
    ms_deform_attn_reference,
    sampling_locations_from_offsets,
)
from tests.ops.checks import TOLERANCE

pytestmark = pytest.mark.xdist_group("cuda_kernels_on_host")  # compiled once

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

FEW_LEVELS = [(3, 4), (0, 5), (1, 1)]
MORE_LEVELS = [(5, 3), (2, 4), (0, 5), (1, 1)]
DTYPES = [
    (torch.float64, torch.float64),
    (torch.float32, torch.float32),
    (torch.float16, torch.float16),
    (torch.float16, torch.float32),
    (torch.bfloat16, torch.bfloat16),
    (torch.bfloat16, torch.float32),
]
# A small GPU, whose multiprocessors have enough blocks of any size, and a large one.
FEW_MULTIPROCESSORS, MANY_MULTIPROCESSORS = 1, 132


class Problem(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in SIZES),
        *((name, ctypes.c_void_p) for name in TENSORS),
        ("first_image", ctypes.c_int64),
    ]


class Gradients(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_void_p)
        for name in ("output", "value", "reference_points", "offsets", "weights")
    ]


class Used(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_int) for name in ("index_bits", "vector", "levels", "points", "threads")
    ]


@pytest.fixture(scope="module")
def kernels(tmp_path_factory):
    compiler = shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    library = tmp_path_factory.mktemp("kernels") / "kernels.so"
    number_types = Path(torch.__file__).parent / "include"
    command = [
        *(compiler, "-std=c++20", "-O1", "-shared", "-fPIC", f"-I{number_types}"),
        *(HERE / "cuda_kernels_on_host.cpp", "-o", library),
    ]
    subprocess.run(command, check=True, capture_output=True)
    return ctypes.CDLL(str(library))


def case(
    *,
    channels,
    dims,
    levels=FEW_LEVELS,
    reference_levels=None,
    points=2,
    batch=2,
    queries=7,
    heads=3,
    dtypes=(torch.float64, torch.float64),
):
    """Make offsets beyond all sides, one that is NaN and one far away; queries are a prime number.

    ``dims`` are those of the reference points; 0 stands for sampling locations.
    """
    torch.manual_seed(0)
    shapes = torch.tensor(levels)
    tokens = shapes.prod(1)
    dtype, given_dtype = dtypes
    exact = torch.promote_types(dtype, torch.float32)

    offsets = torch.randn(batch, queries, heads, len(levels), points, 2, dtype=torch.float64) * 2
    if dims == 0:
        offsets = offsets * 0.3 + 0.5
    offsets[0, 0, 0, 0, 0, 0] = float("nan")
    offsets[-1, 2, -1, 0, 0] = 6e4

    reference_shape = (batch, queries, reference_levels or len(levels), max(dims, 2))
    inputs = {
        "value": torch.randn(batch, int(tokens.sum()), heads, channels, dtype=torch.float64),
        "reference_points": torch.rand(reference_shape, dtype=torch.float64).to(exact),
        "offsets": offsets.to(given_dtype),
        "weights": torch.randn(offsets.shape[:-1], dtype=torch.float64).to(given_dtype),
    }
    inputs["value"] = inputs["value"].to(dtype)
    inputs = {name: tensor.requires_grad_() for name, tensor in inputs.items()}
    return inputs | {"shapes": shapes, "starts": tokens.cumsum(0) - tokens, "dims": dims}


def expected_output(inputs):
    exact = inputs["reference_points"].dtype
    locations, weights = inputs["offsets"].to(exact), inputs["weights"].to(exact)
    # Anything outside, because the gradient of a box is a product with the offset.
    locations = torch.where(locations.abs() < 1e4, locations, -1e3)
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
    pointers = (inputs[name].data_ptr() for name in TENSORS)
    return Problem(*sizes, reference.shape[2], inputs["dims"], *pointers, 0)


def find_function(kernels, direction, inputs):
    types = (str(inputs[name].dtype).removeprefix("torch.") for name in ("value", "offsets"))
    function = getattr(kernels, "_".join((direction, *types)))
    function.restype = Used
    function.argtypes = (ctypes.c_char_p, ctypes.c_int64, ctypes.c_void_p, ctypes.c_void_p)
    return function


def run_forward(kernels, inputs, variant="chosen", multiprocessors=FEW_MULTIPROCESSORS):
    """Return the output, and what ran."""
    problem, value = as_problem(inputs), inputs["value"]
    output_shape = (value.shape[0], inputs["offsets"].shape[1], value.shape[2] * value.shape[3])
    output = torch.full(output_shape, float("nan"), dtype=value.dtype)

    run = find_function(kernels, "forward", inputs)
    used = run(variant.encode(), multiprocessors, ctypes.addressof(problem), output.data_ptr())
    return output, used


def run_backward(
    kernels, inputs, grad_output, names, variant="chosen", multiprocessors=FEW_MULTIPROCESSORS
):
    """Return the gradients of the names; null pointers stand for the others."""
    exact = inputs["reference_points"].dtype
    grads = {name: torch.zeros_like(inputs[name], dtype=exact) for name in names}
    if "offsets" in grads:
        grads["offsets"] = grads["offsets"].to(inputs["offsets"].dtype)
    for name in {"offsets", "weights"} & set(names):
        grads[name].fill_(float("nan"))  # the kernel writes each of these, also outside the map

    pointers = [
        grads[name].data_ptr() if name in grads else None
        for name in ("value", "reference_points", "offsets", "weights")
    ]
    problem, given = as_problem(inputs), Gradients(grad_output.data_ptr(), *pointers)
    run = find_function(kernels, "backward", inputs)
    run(variant.encode(), multiprocessors, ctypes.addressof(problem), ctypes.addressof(given))
    return grads


def differentiable(inputs):
    return ["value", "offsets", "weights"] + (["reference_points"] if inputs["dims"] else [])


def check_all(kernels, inputs, variant="chosen", tolerance=1e-11, **options):
    """Compare output and gradients with those of the reference; return what ran."""
    output = expected_output(inputs)
    found, used = run_forward(kernels, inputs, variant, **options)
    close = {"atol": tolerance, "rtol": tolerance}
    torch.testing.assert_close(found, output, **close)

    names = differentiable(inputs)
    grad_output = torch.randn_like(output)
    wanted = torch.autograd.grad(output, [inputs[name] for name in names], grad_output)
    expected = dict(zip(names, wanted, strict=True))
    for left_out in (None, *names):
        asked = [name for name in names if name != left_out]
        for name, grad in run_backward(
            kernels, inputs, grad_output, asked, variant, **options
        ).items():
            # A sum of many products; the reference rounds it to the type of its input.
            scale = max(1.0, float(expected[name].abs().max()))
            torch.testing.assert_close(
                grad.double() / scale, expected[name].double() / scale, **close, msg=name
            )
    return used


@pytest.mark.parametrize("variant", ["chosen", "vectors", "scalars", "32 bits", "narrow"])
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
    check_all(kernels, case(**options), variant)


@pytest.mark.parametrize("levels", [FEW_LEVELS, MORE_LEVELS], ids=["3 levels", "4 levels"])
@pytest.mark.parametrize(
    ("dims", "dtypes"),
    [
        *((dims, dtypes) for dims in (2, 4) for dtypes in DTYPES[1:]),
        # The operator takes no sampling locations in half precision.
        *((0, dtypes) for dtypes in DTYPES[1:] if dtypes[1] == torch.float32),
    ],
    ids=str,
)
def test_common_shapes_have_kernels_of_their_own(kernels, dims, dtypes, levels):
    inputs = case(dims=dims, channels=32, levels=levels, points=4, dtypes=dtypes)
    used = check_all(kernels, inputs, tolerance=TOLERANCE[dtypes[0]])
    assert (used.index_bits, used.levels, used.points) == (32, len(levels), 4)
    assert used.vector == 16 // inputs["value"].element_size()


@pytest.mark.parametrize("variant", ["vectors", "scalars"])
@pytest.mark.parametrize("dtypes", DTYPES, ids=str)
def test_every_number_type_has_the_general_kernels(kernels, dtypes, variant):
    inputs = case(dims=4, channels=40, points=3, dtypes=dtypes)
    used = check_all(kernels, inputs, variant, tolerance=TOLERANCE[dtypes[0]])
    assert (used.index_bits, used.levels, used.points) == (64, 0, 0)


@pytest.mark.parametrize(
    ("options", "variant", "vector"),
    [
        ({"channels": 64}, "chosen", 4),
        ({"channels": 1}, "chosen", 1),
        ({"channels": 71}, "chosen", 1),
        ({"channels": 32, "points": 5}, "chosen", 4),
        ({"channels": 32, "levels": [(2, 3)]}, "chosen", 4),
        ({"channels": 32, "levels": MORE_LEVELS}, "unaligned", 1),
        ({"channels": 32, "levels": MORE_LEVELS, "dtypes": DTYPES[0]}, "chosen", 2),
    ],
    ids=str,
)
def test_other_shapes_take_the_general_kernels(kernels, options, variant, vector):
    dtypes = options.get("dtypes", DTYPES[1])
    inputs = case(**({"dims": 2, "points": 4, "dtypes": dtypes} | options))
    used = check_all(kernels, inputs, variant, tolerance=TOLERANCE[dtypes[0]])
    assert (used.index_bits, used.vector, used.levels) == (64, vector, 0)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("queries", [1, 31, 101])
def test_blocks_of_any_size_compute_the_same(kernels, batch, queries):
    inputs = case(
        dims=2,
        channels=32,
        levels=MORE_LEVELS,
        points=4,
        batch=batch,
        queries=max(queries, 3),
        heads=2,
        dtypes=DTYPES[1],
    )
    small, few = run_forward(kernels, inputs, multiprocessors=MANY_MULTIPROCESSORS)
    large, many = run_forward(kernels, inputs, multiprocessors=0)
    assert (few.threads, many.threads) == (32, 128)
    torch.testing.assert_close(small, large, atol=0, rtol=0)
    torch.testing.assert_close(small, expected_output(inputs), atol=2e-5, rtol=2e-5)


def test_more_images_than_a_grid_has_take_several_launches(kernels):
    images = (ctypes.c_int64 * 8)()
    assert kernels.images_of_launches(ctypes.c_int64(2 * 65535 + 1), images) == 3
    assert list(images)[:6] == [0, 65535, 65535, 65535, 131070, 1]


@pytest.mark.parametrize("variant", ["chosen", "vectors", "scalars"])
@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_nothing_outside_the_map_counts_even_where_it_is_not_finite(kernels, bad, variant):
    inputs = case(dims=0, channels=32, levels=[(4, 4)] * 4, points=4, dtypes=DTYPES[1])
    # All samples lie half a pixel left of the map's middle row: their left corners are outside, and
    # have the addresses of the last column.
    with torch.no_grad():
        inputs["offsets"][..., 0] = 0.0
        inputs["offsets"][..., 1] = 0.5
        inputs["value"].view(2, 4, 4, 4, 3, 32)[:, :, :, 1:] = bad
    grad_output = torch.ones_like(expected_output(inputs))

    output, _ = run_forward(kernels, inputs, variant)
    assert output.isfinite().all()
    torch.testing.assert_close(output, expected_output(inputs), atol=2e-5, rtol=2e-5)
    grads = run_backward(kernels, inputs, grad_output, differentiable(inputs), variant)
    assert all(grad.isfinite().all() for grad in grads.values())

    # All samples lie outside; weights and gradients of the output are not finite, either.
    with torch.no_grad():
        inputs["offsets"].fill_(2.0)
        inputs["weights"].fill_(bad)
    output, _ = run_forward(kernels, inputs, variant)
    assert (output == 0).all()
    names = differentiable(inputs)
    grads = run_backward(kernels, inputs, grad_output * bad, names, variant)
    assert all((grad == 0).all() for grad in grads.values())


@pytest.mark.parametrize("variant", ["chosen", "scalars"])
def test_what_is_not_finite_inside_the_map_stays_so(kernels, variant):
    inputs = case(dims=2, channels=32, levels=MORE_LEVELS, points=4, dtypes=DTYPES[1])
    with torch.no_grad():
        inputs["value"][0, 3] = float("inf")
        inputs["value"][1, 5, 0, 7] = float("nan")
        inputs["weights"][1, 4, 1, 2, 0] = float("nan")
    output, _ = run_forward(kernels, inputs, variant)
    expected = expected_output(inputs)
    assert not expected.isfinite().all() and expected.isfinite().any()
    torch.testing.assert_close(output, expected, atol=2e-5, rtol=2e-5, equal_nan=True)


def reserve(numbers, dtype):
    """Return zeros of which only those that are touched take memory."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0x4000)
    try:
        memory = mmap.mmap(-1, numbers * torch.finfo(dtype).bits // 8, flags=flags)
    except OSError:
        pytest.skip("this system does not reserve more memory than it has")
    return torch.frombuffer(memory, dtype=dtype)


@pytest.mark.parametrize(
    ("rows", "index_bits"), [(4096, 32), (4097, 64)], ids=["2^32 numbers", "more"]
)
def test_an_image_may_have_more_numbers_than_offsets_of_32_bits_reach(kernels, rows, index_bits):
    heads, channels, columns, seen = 8, 32, 4096, 2
    shapes = torch.tensor([(rows, columns), (0, 1), (0, 1)])
    tokens = rows * columns
    inputs = case(dims=2, channels=channels, levels=FEW_LEVELS, points=4, batch=1, heads=heads)
    inputs = {name: x.detach() if torch.is_tensor(x) else x for name, x in inputs.items()}
    for name in ("reference_points", "offsets", "weights"):
        inputs[name] = inputs[name].float()
    offsets = inputs["offsets"]

    # Samples in the last rows of the image: y is rows - 1.25, x a little above 0.5.
    inputs["reference_points"].fill_(1.0)
    offsets[..., 0] = 1.25 - columns
    offsets[..., 1] = -0.75
    inputs["value"] = reserve(tokens * heads * channels, torch.float16).view(
        1, tokens, heads, channels
    )
    inputs["shapes"], inputs["starts"] = shapes, torch.tensor([0, tokens, tokens])
    last = inputs["value"].view(rows, columns, heads, channels)[-seen:, :seen]
    last.copy_(torch.randn(last.shape))
    softmax = inputs["weights"].flatten(3).softmax(-1).view_as(inputs["weights"])
    share = softmax[0, :, :, 0].sum(-1)  # (Q, M); the other levels are empty

    # x = columns - 0.5 + 1.25 - columns = 0.75, y = rows - 1.25.
    corners = last.float()
    by_row = 0.25 * corners[:, 0] + 0.75 * corners[:, 1]
    sampled = 0.25 * by_row[0] + 0.75 * by_row[1]  # (M, C)
    expected = (share[..., None] * sampled).flatten(1)

    output, used = run_forward(kernels, inputs)
    assert used.index_bits == index_bits
    torch.testing.assert_close(output[0].float(), expected, atol=2e-3, rtol=2e-3)
    found, _ = run_forward(kernels, inputs, "scalars")
    torch.testing.assert_close(found, output, atol=2e-3, rtol=2e-3)
