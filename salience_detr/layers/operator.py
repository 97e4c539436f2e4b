"""The compiled deformable-attention operator: loading, tracing and gradients.

The schemas and kernels are registered by the library itself, from ops/csrc.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
import sys
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

PACKAGE = Path(__file__).resolve().parents[1]
# A wheel holds the sources and, if there was a compiler, the library. A checkout has the sources
# beside the package. There, a wheel may have the module "ops" of another project.
BUILT_AHEAD = PACKAGE / "_operator"
BUILDERS = (PACKAGE / "_ops" / "build.py", PACKAGE.parent / "ops" / "build.py")
SOURCE = Path("csrc", "registration.cpp")
BUILDER = next((path for path in BUILDERS if (path.parent / SOURCE).exists()), None)
NAMES = ("ms_deform_attn", "ms_deform_attn_fused")
OPERATORS = (*NAMES, *(f"{name}_backward" for name in NAMES))


@torch.compiler.assume_constant_result
def is_compiled_for(device_type: str) -> bool:
    """Return whether ``torch.ops.salience_detr`` runs on a device ("cpu", "cuda", "meta")."""
    if not load_operator():
        return False

    key = {"cpu": "CPU", "cuda": "CUDA", "meta": "Meta"}.get(device_type, "")
    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
    if key and has_kernel("salience_detr::ms_deform_attn", key):
        return True

    warn_of_reference(f"the operator was built without {device_type}")
    return False


@functools.cache
def load_operator() -> bool:
    """Load the operator, and build it first if there is no library for this PyTorch.

    SALIENCE_DETR_OPERATOR=off turns it off. Call this before loading a program that holds the
    operator (torch.export.load).

    Returns:
        False, after a warning, if the operator cannot be had.
    """
    if os.environ.get("SALIENCE_DETR_OPERATOR", "").lower() == "off":
        return False

    if BUILDER is None:
        warn_of_reference("the package was installed without the operator's sources")
        return False

    builder = import_file(BUILDER)
    try:
        library = find_or_build(builder)
        if BUILT_AHEAD not in library.parents:
            builder.check_trusted(library.parent)
            builder.check_trusted(library)
    except (builder.BuildError, OSError) as error:
        warn_of_reference(str(error))
        return False

    try:
        torch.ops.load_library(str(library))
    except OSError as error:
        warn_of_reference(f"{error}\nDelete {library.parent} to have it built again.")
        return False

    missing = [name for name in OPERATORS if not hasattr(torch.ops.salience_detr, name)]
    if missing:
        warn_of_reference(
            f"{library} has no {', '.join(missing)}\n"
            f"Delete {library.parent} to have it built again."
        )
        return False

    register()

    return True


def find_or_build(builder: ModuleType) -> Path:
    """Return the library for the devices of this machine.

    If the CUDA part cannot be built, it is the library for the CPU alone, after a warning.

    Raises:
        BuildError: not even that one can be built.
    """
    architectures = builder.architectures()
    roots = [BUILT_AHEAD]
    with contextlib.suppress(builder.BuildError):  # there is no home folder, or it is not safe
        roots.append(builder.cache_root())

    library = builder.find(roots, architectures)
    if library is not None:
        return library

    try:
        return builder.build(builder.cache_root(), architectures)
    except builder.BuildError as error:
        if architectures is None:
            raise
        warnings.warn(
            f"the CUDA part of the deformable-attention operator cannot be built: {error}",
            stacklevel=2,
        )

    return builder.find(roots, None) or builder.build(builder.cache_root(), None)


def import_file(path: Path) -> ModuleType:
    """Import a Python file that belongs to no package."""
    spec = importlib.util.spec_from_file_location("salience_detr_operator_build", path)
    assert spec is not None and spec.loader is not None

    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@functools.cache
def warn_of_reference(reason: str) -> None:
    """Warn, once per reason, that the reference runs instead, with the remedy."""
    warnings.warn(
        f"the compiled deformable-attention operator is not used: {reason}\n"
        "The PyTorch reference is, which is much slower. With a C++ compiler (and nvcc for "
        f"CUDA) at hand, '{sys.executable} {BUILDER}' builds the operator and reports errors; "
        "SALIENCE_DETR_OPERATOR=off stops trying.",
        stacklevel=2,
    )


def register() -> None:
    """Register fake kernels, which give shapes for tracing, and gradients."""
    for name in NAMES:
        torch.library.register_fake(f"salience_detr::{name}", fake_forward)
        torch.library.register_autograd(
            f"salience_detr::{name}",
            functools.partial(differentiate, name),
            setup_context=save_inputs,
        )
        torch.library.register_autograd(
            f"salience_detr::{name}_backward", refuse_second_derivatives
        )

    torch.library.register_fake("salience_detr::ms_deform_attn_backward", fake_backward)
    torch.library.register_fake("salience_detr::ms_deform_attn_fused_backward", fake_fused_backward)


def fake_forward(value: Tensor, *others: Tensor) -> Tensor:
    """Return an output of the right shape, (B, Q, M * C); the last input is (B, Q, M, L, P)."""
    batch, _, heads, channels = value.shape
    return value.new_empty(batch, others[-1].shape[1], heads * channels)


def fake_gradients(
    value: Tensor, tensors: tuple[Tensor, ...], needed: list[bool]
) -> tuple[Tensor, ...]:
    """Return gradients of the right shapes; those that are not needed are empty."""
    gradients = []
    for tensor, is_needed in zip(tensors, needed, strict=True):
        if is_needed:
            gradients.append(torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device))
        else:
            gradients.append(value.new_empty(0))

    return tuple(gradients)


def fake_backward(
    grad_output: Tensor,
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    needed: list[bool],
) -> tuple[Tensor, ...]:
    return fake_gradients(value, (value, sampling_locations, attention_weights), needed)


def fake_fused_backward(
    grad_output: Tensor,
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    reference_points: Tensor,
    sampling_offsets: Tensor,
    attention_logits: Tensor,
    needed: list[bool],
) -> tuple[Tensor, ...]:
    return fake_gradients(
        value, (value, reference_points, sampling_offsets, attention_logits), needed
    )


def save_inputs(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    """Save all inputs for the backward pass."""
    ctx.save_for_backward(*inputs)


def differentiate(name: str, ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
    """Compute the gradients of the value and of the inputs after the shapes of the levels."""
    needed = list(ctx.needs_input_grad)
    differentiable = needed[:1] + needed[3:]

    operator = getattr(torch.ops.salience_detr, f"{name}_backward")
    grads = list(operator(grad_output, *ctx.saved_tensors, differentiable))

    # The operator gives empty tensors where autograd expects None.
    for i, is_needed in enumerate(differentiable):
        if not is_needed:
            grads[i] = None
    return (grads[0], None, None, *grads[1:])


def refuse_second_derivatives(ctx: Any, *grads: Tensor) -> None:
    """Raise NotImplementedError: the compiled backward pass cannot be differentiated."""
    raise NotImplementedError(
        "the compiled deformable attention has first derivatives only; "
        "set SALIENCE_DETR_OPERATOR=off for the PyTorch reference"
    )
