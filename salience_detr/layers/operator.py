"""The compiled deformable-attention operator: loading it, and what PyTorch must know to trace and differentiate it."""

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
# A wheel holds the sources and, if there was a compiler, the library; a checkout has the sources beside the package.
BUILT_AHEAD = PACKAGE / "_operator"
BUILDERS = (PACKAGE.parent / "ops" / "build.py", PACKAGE / "_ops" / "build.py")
BUILDER = next((path for path in BUILDERS if path.exists()), None)
NAMES = ("ms_deform_attn", "ms_deform_attn_fused")


@torch.compiler.assume_constant_result
def is_compiled_for(device_type: str) -> bool:
    """Whether tensors on such a device ("cpu", "cuda", "meta") can go to ``torch.ops.salience_detr``."""
    if not load_operator():
        return False
    key = {"cpu": "CPU", "cuda": "CUDA", "meta": "Meta"}.get(device_type, "")
    found = bool(key) and torch._C._dispatch_has_kernel_for_dispatch_key(
        "salience_detr::ms_deform_attn", key
    )
    if not found:
        warn_of_slow_form(f"the operator was built without {device_type}")
    return found


@functools.cache
def load_operator() -> bool:
    """Load the operator, built first if there is no library for this PyTorch; False, after a warning, if impossible.

    SALIENCE_DETR_OPERATOR=off turns it off. Programs that hold the operator (torch.export.load) need this call first.
    """
    if os.environ.get("SALIENCE_DETR_OPERATOR", "").lower() == "off":
        return False
    if BUILDER is None:
        warn_of_slow_form("the package was installed without the operator's sources")
        return False
    builder = import_file(BUILDER)
    try:
        library = find_or_build(builder)
    except (builder.BuildError, OSError) as error:
        warn_of_slow_form(str(error))
        return False
    try:
        torch.ops.load_library(str(library))
    except OSError as error:
        warn_of_slow_form(f"{error}\nDelete {library.parent} to have it built again.")
        return False
    register()
    return True


def find_or_build(builder: ModuleType) -> Path:
    """The library for the devices of this machine; for the CPU alone, after a warning, if the CUDA part fails."""
    architectures = builder.architectures()
    roots = [BUILT_AHEAD]
    with contextlib.suppress(
        builder.BuildError
    ):  # without a home folder there is only what was built ahead
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
    """A Python file that belongs to no package, as a module."""
    spec = importlib.util.spec_from_file_location("salience_detr_operator_build", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@functools.cache
def warn_of_slow_form(reason: str) -> None:
    """Say once why the model is slow and what helps."""
    warnings.warn(
        f"the compiled deformable-attention operator is not used: {reason}\n"
        "Its PyTorch form is, which is several times slower. With a C++ compiler (and nvcc for CUDA) at hand, "
        f"'{sys.executable} {BUILDER}' builds it and says what is wrong; SALIENCE_DETR_OPERATOR=off stops trying.",
        stacklevel=2,
    )


def register() -> None:
    """Shapes for tracing, and gradients."""
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
    batch, _, heads, channels = value.shape
    return value.new_empty(batch, others[-1].shape[1], heads * channels)


def fake_gradients(
    value: Tensor, tensors: tuple[Tensor, ...], needed: list[bool]
) -> tuple[Tensor, ...]:
    return tuple(
        torch.empty(x.shape, dtype=x.dtype, device=x.device) if wanted else value.new_empty(0)
        for x, wanted in zip(tensors, needed, strict=True)
    )


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
    ctx.save_for_backward(*inputs)


def differentiate(name: str, ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
    """Gradients of value and of all inputs after the two that describe the levels."""
    needed = list(ctx.needs_input_grad)
    wanted = needed[:1] + needed[3:]
    operator = getattr(torch.ops.salience_detr, f"{name}_backward")
    grads = operator(grad_output, *ctx.saved_tensors, wanted)
    kept = [grad if is_wanted else None for grad, is_wanted in zip(grads, wanted, strict=True)]
    return (kept[0], None, None, *kept[1:])


def refuse_second_derivatives(ctx: Any, *grads: Tensor) -> None:
    raise NotImplementedError(
        "the compiled deformable attention has first derivatives only; "
        "set SALIENCE_DETR_OPERATOR=off for the PyTorch form"
    )
