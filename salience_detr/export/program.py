"""Recording a model with torch.export, and writing what was recorded."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.export import Dim, ExportedProgram
from torch.utils._sympy.value_ranges import ValueRanges

from salience_detr.export.graph import DetectionGraph
from salience_detr.export.info import KEY, DetectorInfo, ExportError
from salience_detr.predictor import Predictor
from salience_detr.utils.files import written_whole

EXAMPLE_SIDES = (
    480,
    640,
)  # of several windows of a Swin at every level, or one would be taken for the rule
MAX_SIDE = 16384


def record(predictor: Predictor) -> ExportedProgram:
    """The model of a predictor as a program of torch.export, of free batch size, height and width.

    Raises:
        ExportError: the model is on a GPU, or this PyTorch is too old.
    """
    if predictor.model.device.type != "cpu":
        raise ExportError("a model is recorded on the CPU; give the Predictor device='cpu'")
    if (
        "prefer_deferred_runtime_asserts_over_guards"
        not in inspect.signature(torch.export.export).parameters
    ):
        raise ExportError(
            f"exporting needs a newer PyTorch than {torch.__version__}; it was tested with 2.15"
        )
    height, width = EXAMPLE_SIDES
    example = (
        torch.zeros(2, 3, height, width),
        torch.tensor([[height, width], [height - 20, width - 50]]),
    )
    batch, *sides = (
        Dim("batch"),
        *(Dim(name, min=65, max=MAX_SIDE) for name in ("height", "width")),
    )
    with torch.no_grad(), quiet():
        program = torch.export.export(
            DetectionGraph(predictor.model).eval(),
            example,
            dynamic_shapes={
                "images": {0: batch, 2: sides[0], 3: sides[1]},
                "image_sizes": {0: batch},
            },
            strict=False,
            prefer_deferred_runtime_asserts_over_guards=True,
        )
    admit_small_batches(program)
    return program


def admit_small_batches(program: ExportedProgram) -> None:
    """Lift, in place, the limits from which on the recording knows how tensors lie in memory: what it does is right for
    a batch of 1 and for levels of one token, too."""
    for symbol, limits in program.range_constraints.items():
        program.range_constraints[symbol] = ValueRanges(min(1, limits.lower), limits.upper)
    for node in list(program.graph.nodes):
        if node.target == torch.ops.aten._assert_scalar.default:
            program.graph.erase_node(node)
    program.graph.eliminate_dead_code()
    program.graph_module.recompile()


@contextmanager
def quiet() -> Iterator[None]:
    """Without warnings of the recording about libraries' own code."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def save_program(program: ExportedProgram, path: Path, info: DetectorInfo) -> None:
    """Write a .pt2 file that :class:`salience_detr.export.PackagedDetector` reads; it runs wherever PyTorch does."""
    with written_whole(path) as temporary, open(temporary, "wb") as file:
        torch.export.save(program, file, extra_files={KEY: info.to_json()})


def compile_package(program: ExportedProgram, path: Path, info: DetectorInfo) -> None:
    """Compile ahead of time for this machine's kind of processor, with AOTInductor, and write a .pt2 package.

    It takes a C++ compiler and a few minutes.
    """
    with written_whole(path) as temporary, quiet():
        package = temporary.with_suffix(".pt2")  # the only ending that it takes
        torch._inductor.aoti_compile_and_package(
            program,
            package_path=str(package),
            inductor_configs={"aot_inductor.metadata": {KEY: info.to_json()}},
        )
        package.replace(temporary)
