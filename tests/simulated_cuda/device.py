"""A CUDA device without a GPU: tensors that say they are on cuda:0 and hold CPU memory.

Everything above the kernels is PyTorch's own: dispatch, autograd, CUDA's autocast, type promotion.
The kernels are the CPU's. An operator that is given tensors of both devices raises, and whatever
would stop the host until a GPU has caught up is counted. What only real kernels, streams or NCCL
can show is not simulated.
"""

from __future__ import annotations

import contextlib
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

CUDA = torch.device("cuda", 0)
PROJECT = str(Path(__file__).resolve().parents[2] / "salience_detr")

# Operators whose output depends on numbers that the host has to wait for.
WAITING = {
    "_local_scalar_dense": "item",
    "is_nonzero": "item",
    "equal": "equal",
    "nonzero": "nonzero",
    "masked_select": "masked_select",
    "_unique2": "unique",
    "unique_consecutive": "unique",
    "unique_dim": "unique",
    "bincount": "bincount",
    "nms": "nms",
}
INDEXING = {
    "index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index", "_unsafe_index_put",
}  # fmt: skip
# They take nothing from a tensor but its shape, and may make a tensor of another device.
MAKING = {
    "empty_like", "zeros_like", "ones_like", "full_like", "rand_like", "randn_like", "randint_like",
    "new_empty", "new_zeros", "new_ones", "new_full", "new_empty_strided",
}  # fmt: skip
# They do not take a number of the CPU even where it is a tensor without dimensions.
REFUSING_SCALARS = {
    "mm", "addmm", "bmm", "cat", "stack", "gather", "scatter", "scatter_", "index_select",
    "embedding", "convolution", "native_layer_norm", "native_group_norm", "native_batch_norm",
    "topk", "sort",
}  # fmt: skip
# They launch no kernel, although their schema does not say that they return a view.
LAUNCHING_NOTHING = {"_unsafe_view", "_reshape_alias", "detach", "view", "empty", "empty_like",
                     "new_empty", "_fused_sdp_choice"}  # fmt: skip


class DeviceMixError(RuntimeError):
    """Use of tensors of two devices by one operator, which CUDA refuses."""


@dataclass
class Record:
    """Count of what a piece of work costs the host, by kind and line of the project.

    Attributes:
        waits: reads of the device, and copies to it that are not ``non_blocking``.
        operators: operators that launch a kernel at least, by name; copies and casts are left out.
        launches: the same operators by the line that calls them ("backward" for autograd's).
    """

    waits: Counter[tuple[str, str]] = field(default_factory=Counter)
    operators: Counter[str] = field(default_factory=Counter)
    launches: Counter[str] = field(default_factory=Counter)

    is_running: bool = False

    def start(self) -> None:
        """Forget what was counted, and count from here."""
        self.waits.clear()
        self.operators.clear()
        self.launches.clear()
        self.is_running = True

    def stop(self) -> None:
        self.is_running = False

    @property
    def num_waits(self) -> int:
        return sum(self.waits.values())

    @property
    def num_operators(self) -> int:
        return sum(self.operators.values())

    def add_wait(self, kind: str) -> None:
        if self.is_running:
            self.waits[kind, calling_line()] += 1

    def add_operator(self, name: str) -> None:
        if self.is_running:
            self.operators[name] += 1
            self.launches[calling_line()] += 1


RECORD = Record()


def calling_line() -> str:
    """Return the innermost line of the project that is being executed; "backward" for none."""
    frame = sys._getframe(1)
    while frame is not None:
        file_name = frame.f_code.co_filename
        if file_name.startswith(PROJECT):
            place = file_name.removeprefix(PROJECT).lstrip("/")
            # Autograd runs the operators of a backward pass below this method.
            if place == "engine/trainer.py" and frame.f_code.co_name == "backward":
                return "backward"
            return f"{place}:{frame.f_lineno} {frame.f_code.co_name}"
        frame = frame.f_back
    return "backward"


class SimulatedTensor(torch.Tensor):
    """A tensor that reports the device cuda:0.

    Attributes:
        elem: the tensor on the CPU that it stands for.
    """

    elem: Tensor

    @staticmethod
    def __new__(cls, elem: Tensor) -> SimulatedTensor:
        assert not isinstance(elem, SimulatedTensor) and elem.device.type == "cpu"
        tensor = torch.Tensor._make_wrapper_subclass(
            cls,
            elem.size(),
            strides=elem.stride(),
            storage_offset=elem.storage_offset(),
            dtype=elem.dtype,
            layout=elem.layout,
            device=CUDA,
            requires_grad=False,
        )
        tensor.elem = elem
        return tensor

    def __repr__(self) -> str:
        return f"SimulatedTensor({self.elem!r})"

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Replace the few functions that do not come to the dispatcher as a CUDA tensor's would."""
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")

        if name == "tolist":
            RECORD.add_wait("tolist")
            return args[0].detach().elem.tolist()

        if name in ("numpy", "__array__"):
            raise TypeError("a cuda:0 tensor cannot be turned into a numpy array; use .cpu()")

        if name == "__deepcopy__":
            return copy_tensor(*args)

        with torch._C.DisableTorchFunctionSubclass():
            if name == "scaled_dot_product_attention":
                return attend(*args, **kwargs)

            result = func(*args, **kwargs)
            if func is torch.Tensor.data.__set__:
                args[0].elem = args[1].elem
            return result

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run_operator(func, args, kwargs or {})


def copy_tensor(tensor: SimulatedTensor, memo: dict[int, Any]) -> SimulatedTensor:
    """Copy a tensor for :func:`copy.deepcopy`; a parameter stays one."""
    if id(tensor) not in memo:
        copied = SimulatedTensor(tensor.detach().elem.clone())
        copied.requires_grad_(tensor.requires_grad)
        if isinstance(tensor, nn.Parameter):
            copied._is_param = True
        memo[id(tensor)] = copied
    return memo[id(tensor)]


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Compute scaled_dot_product_attention by plain operators, as under CUDA's autocast."""
    # The plain operators add the mask, whatever its dtype.
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        allowed = attn_mask
        attn_mask = torch.zeros_like(allowed, dtype=query.dtype)
        attn_mask = attn_mask.masked_fill_(~allowed, -torch.inf)

    if torch.is_autocast_enabled("cuda"):
        dtype = torch.get_autocast_dtype("cuda")
        query, key, value = (x.to(dtype) for x in (query, key, value))
        if attn_mask is not None:
            attn_mask = attn_mask.to(dtype)

    with torch.autocast("cuda", enabled=False):
        output, _ = torch.ops.aten._scaled_dot_product_attention_math(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale
        )
    return output


def unwrap(x: Any) -> Any:
    return x.elem if isinstance(x, SimulatedTensor) else x


def wrap(x: Any) -> Any:
    if isinstance(x, torch.Tensor) and not isinstance(x, SimulatedTensor):
        return SimulatedTensor(x)
    return x


def run_operator(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Run an operator on the CPU, after the checks that CUDA makes.

    Raises:
        DeviceMixError: it is given tensors of both devices.
    """
    name = func._schema.name.split("::")[1]
    tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
    on_device = [x for x in tensors if isinstance(x, SimulatedTensor)]
    wanted_device = kwargs.get("device")
    wants_cuda = wanted_device is not None and torch.device(wanted_device).type == "cuda"
    if not on_device and not wants_cuda:
        return func(*args, **kwargs)

    if name == "_to_copy":
        return copy_to_device(func, args, kwargs)
    if name == "copy_":
        return copy_into(func, args, kwargs)
    if name == "_fused_sdp_choice":
        return 0  # the implementation by plain operators

    if name in WAITING:
        RECORD.add_wait(WAITING[name])
    if name == "repeat_interleave" and kwargs.get("output_size") is None:
        RECORD.add_wait("repeat_interleave")
    if name == "_local_scalar_dense":
        return func(unwrap(args[0]))

    if name in INDEXING:
        check_indices(func, args)
    else:
        check_devices(func, name, tensors)

    returns_view = any(
        x.alias_info is not None and not x.alias_info.is_write for x in func._schema.returns
    )
    if not returns_view and name not in LAUNCHING_NOTHING:
        RECORD.add_operator(name)

    # The operator itself, on the CPU.
    cpu_kwargs = {key: tree_map(unwrap, value) for key, value in kwargs.items()}
    cpu_kwargs.pop("pin_memory", None)
    if wanted_device is not None:
        cpu_kwargs["device"] = torch.device("cpu")
    output = run_on_cpu(func, name, tree_map(unwrap, args), cpu_kwargs)

    if wanted_device is not None and not wants_cuda:
        if on_device and name not in MAKING:
            RECORD.add_wait(f"device to host by {name}")
        return output

    output = tree_map(wrap, output)
    if on_device:
        return return_and_correct_aliasing(func, args, kwargs, output)
    return output


def run_on_cpu(func: Any, name: str, args: Any, kwargs: dict[str, Any]) -> Any:
    """Run an operator with CPU tensors; softmax converts inside on CUDA, but not on the CPU."""
    if name in ("_softmax", "_log_softmax") and args[2]:
        return func(args[0].float(), args[1], False)

    if name in ("_softmax_backward_data", "_log_softmax_backward_data"):
        gradient, output, dim, dtype = args
        return func(gradient, output, dim, gradient.dtype).to(dtype)

    return func(*args, **kwargs)


def copy_to_device(func: Any, args: Any, kwargs: dict[str, Any]) -> Tensor:
    """Run ``_to_copy``: a copy from one device to the other, or to another dtype."""
    source = args[0]
    options = dict(kwargs)
    wanted_device = options.pop("device", None)
    non_blocking = options.pop("non_blocking", False)
    options.pop("pin_memory", None)

    from_cuda = isinstance(source, SimulatedTensor)
    to_cuda = from_cuda
    if wanted_device is not None:
        to_cuda = torch.device(wanted_device).type == "cuda"

    if from_cuda and not to_cuda:
        RECORD.add_wait("device to host")
    if to_cuda and not from_cuda and not non_blocking:
        RECORD.add_wait("host to device")
    output = func(unwrap(source), **options)
    return SimulatedTensor(output) if to_cuda else output


def copy_into(func: Any, args: Any, kwargs: dict[str, Any]) -> Tensor:
    """Run ``copy_``, which may copy from one device to the other."""
    target, source = args[:2]
    non_blocking = args[2] if len(args) > 2 else kwargs.get("non_blocking", False)

    to_cuda = isinstance(target, SimulatedTensor)
    from_cuda = isinstance(source, SimulatedTensor)
    if from_cuda and not to_cuda:
        RECORD.add_wait("device to host")
    if to_cuda and not from_cuda and not non_blocking:
        RECORD.add_wait("host to device")
    func(unwrap(target), unwrap(source))
    return target


def check_indices(func: Any, args: Any) -> None:
    """Check the tensors of an indexing operator, whose indices may be on the CPU, at a price."""
    indexed, indices = args[:2]
    if not isinstance(indexed, SimulatedTensor):
        raise DeviceMixError(f"{func}: a CPU tensor, indices on cuda, at {calling_line()}")
    if len(args) > 2 and not isinstance(args[2], SimulatedTensor) and args[2].dim() > 0:
        raise DeviceMixError(f"{func}: values on the CPU, at {calling_line()}")

    for index in indices:
        if index is None:
            continue
        if not isinstance(index, SimulatedTensor):
            RECORD.add_wait("host to device")
        if index.dtype in (torch.bool, torch.uint8):
            RECORD.add_wait("boolean index")


def check_devices(func: Any, name: str, tensors: list[Tensor]) -> None:
    """Check that all tensors are on the device, but for numbers where CUDA takes them."""
    for tensor in tensors:
        if isinstance(tensor, SimulatedTensor):
            continue
        if tensor.dim() > 0 or name in REFUSING_SCALARS:
            shape = tuple(tensor.shape)
            raise DeviceMixError(
                f"{func}: a CPU tensor {shape} {tensor.dtype} with cuda tensors, at "
                f"{calling_line()}"
            )


class SimulationMode(TorchDispatchMode):
    """Takes the operators that make tensors of a device, which no tensor of it is given to."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run_operator(func, args, kwargs or {})


@contextlib.contextmanager
def simulated_cuda() -> Iterator[Record]:
    """Simulate one CUDA device within the block, and return what is recorded there.

    Tensors of it cannot be made in inference mode: use :class:`torch.no_grad` instead. A backward
    pass needs ``stub.c`` as the CUDA library.
    """
    torch._C._ensureCUDADeviceGuardSet()
    lifts_cpu_only = torch._C._only_lift_cpu_tensors()
    uses_cudnn = torch.backends.cudnn.enabled
    functional_attention = F.scaled_dot_product_attention

    def attention(query: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        function = attend if isinstance(query, SimulatedTensor) else functional_attention
        return function(query, *args, **kwargs)

    replacements = {
        "torch.cuda._lazy_init": lambda: None,
        "torch.cuda._is_in_bad_fork": lambda: False,
        "torch.cuda.is_available": lambda: True,
        "torch.cuda.is_bf16_supported": lambda *_, **__: True,
        "torch.cuda.device_count": lambda: 1,
        "torch.cuda.current_device": lambda: 0,
        "torch.cuda.get_device_capability": lambda *_: (9, 0),
        "torch.cuda.synchronize": lambda *_: None,
        "torch.cuda.empty_cache": lambda: None,
        "torch.cuda.manual_seed_all": lambda _: None,
        "torch.cuda.get_rng_state_all": lambda: [],
        "torch.cuda.max_memory_allocated": lambda *_: 0,
        "torch.cuda.reset_peak_memory_stats": lambda *_: None,
        "torch.cuda.amp.common.amp_definitely_not_available": lambda: False,
        "torch.nn.functional.scaled_dot_product_attention": attention,
        "torch.nn.Module.to": move_module(nn.Module.to),
        "torch.optim.Optimizer._cuda_graph_capture_health_check": lambda _: None,
    }
    if hasattr(torch.optim.Optimizer, "_accelerator_graph_capture_health_check"):
        name = "torch.optim.Optimizer._accelerator_graph_capture_health_check"
        replacements[name] = lambda _: None

    with contextlib.ExitStack() as stack:
        for name, replacement in replacements.items():
            create = name.endswith("_graph_capture_health_check")
            stack.enter_context(patch(name, replacement, create=create))

        # Autograd's threads would not be in the mode.
        stack.enter_context(torch.autograd.grad_mode.set_multithreading_enabled(False))
        stack.enter_context(SimulationMode())

        torch._C._set_only_lift_cpu_tensors(True)
        torch.backends.cudnn.enabled = False
        try:
            yield RECORD
        finally:
            torch._C._set_only_lift_cpu_tensors(lifts_cpu_only)
            torch.backends.cudnn.enabled = uses_cudnn


def move_module(move: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    """Return ``nn.Module.to`` with new parameters where the device changes, as a subclass needs."""

    def to(module: nn.Module, *args: Any, **kwargs: Any) -> nn.Module:
        names_device = bool(args) and isinstance(args[0], (torch.device, str))
        is_moved = any(not isinstance(p, SimulatedTensor) for p in module.parameters())

        torch.__future__.set_overwrite_module_params_on_conversion(names_device and is_moved)
        try:
            return move(module, *args, **kwargs)
        finally:
            torch.__future__.set_overwrite_module_params_on_conversion(False)

    return to
