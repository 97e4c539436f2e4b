"""Programs of torch.export, and the .pt2 files of them."""

from __future__ import annotations

import contextlib
import inspect
import io
import logging
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from torch.export import Dim, ExportedProgram
from torch.utils._sympy.value_ranges import ValueRanges

from salience_detr.export.graph import DetectionGraph
from salience_detr.export.info import METADATA_KEY, DetectorInfo, ExportError
from salience_detr.modeling import SalienceDETR
from salience_detr.modeling.decoder import OneToManyDecoder
from salience_detr.predictor import Predictor
from salience_detr.utils.files import written_whole

# Every level has several windows of a Swin Transformer. With one window, the exporter would take
# that for the rule.
EXAMPLE_SIZE = (480, 640)
MIN_SIDE = 65
MAX_SIDE = 16384
CPU = torch.device("cpu")


def export_program(predictor: Predictor, *, sampling: str = "grid_sample") -> ExportedProgram:
    """Export a predictor's model with torch.export, for any batch size, height and width.

    Args:
        predictor: it stays as it is.
        sampling: see :class:`salience_detr.export.graph.DetectionGraph`.

    Raises:
        ExportError: if the model is on a GPU, if this PyTorch is too old, or if the operator that
            is to sample is not compiled.
    """
    if predictor.model.device.type != "cpu":
        raise ExportError("a model is exported on the CPU; give the Predictor device='cpu'")

    options = inspect.signature(torch.export.export).parameters
    if "prefer_deferred_runtime_asserts_over_guards" not in options:
        raise ExportError(
            f"exporting needs a newer PyTorch than {torch.__version__}; it was tested with 2.15"
        )

    # Two images of different sizes.
    height, width = EXAMPLE_SIZE
    images = torch.zeros(2, 3, height, width)
    image_sizes = torch.tensor([[height, width], [height - 20, width - 50]])

    graph = DetectionGraph(predictor.model, sampling=sampling).eval()
    drop_training_parts(graph)

    batch = Dim("batch")
    free_height = Dim("height", min=MIN_SIDE, max=MAX_SIDE)
    free_width = Dim("width", min=MIN_SIDE, max=MAX_SIDE)

    with torch.no_grad(), quiet():
        program = torch.export.export(
            graph,
            (images, image_sizes),
            dynamic_shapes={
                "images": {0: batch, 2: free_height, 3: free_width},
                "image_sizes": {0: batch},
            },
            strict=False,
            prefer_deferred_runtime_asserts_over_guards=True,
        )

    admit_small_batches(program)
    return program


def drop_training_parts(graph: DetectionGraph) -> None:
    """Drop second class heads and queries, in place: a program holds unused weights, too."""
    for module in list(graph.modules()):
        if isinstance(module, OneToManyDecoder):
            del module.one_to_many_heads
        if isinstance(module, SalienceDETR):
            module.hybrid_queries = None


def admit_small_batches(program: ExportedProgram) -> None:
    """Lower the minimum of all sizes to 1, in place.

    The exporter assumes at least 2, since the memory layout of tensors is not unique below. The
    graph is right for a batch of 1 and for levels of one token, too.
    """
    for symbol, limits in program.range_constraints.items():
        program.range_constraints[symbol] = ValueRanges(min(1, limits.lower), limits.upper)

    for node in list(program.graph.nodes):
        if node.target == torch.ops.aten._assert_scalar.default:
            program.graph.erase_node(node)
    program.graph.eliminate_dead_code()
    program.graph_module.recompile()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Suppress what exporters print and warn about the code of libraries."""
    disabled = logging.root.manager.disable
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(disabled)


def save_program(program: ExportedProgram, path: Path, info: DetectorInfo) -> None:
    """Write a .pt2 file for :class:`PackagedDetector`, which runs wherever PyTorch does."""
    with written_whole(path) as temporary, open(temporary, "wb") as file:
        torch.export.save(program, file, extra_files={METADATA_KEY: info.to_json()})


def compile_package(
    program: ExportedProgram, path: Path, info: DetectorInfo, *, device: torch.device = CPU
) -> None:
    """Compile a program for this machine's kind of processor or GPU, and write a .pt2 package.

    AOTInductor takes a C++ compiler and a few minutes. The program itself is moved to the device.
    """
    if device.type != "cpu":
        from torch.export.passes import move_to_device_pass  # PyTorch 2.4 has no such module

        program = move_to_device_pass(program, device)

    metadata = {METADATA_KEY: info.to_json()}
    with (
        written_whole(path) as temporary,
        tempfile.TemporaryDirectory(dir=path.parent) as folder,
        quiet(),
    ):
        package = Path(folder) / "model.pt2"  # AOTInductor accepts no other suffix
        torch._inductor.aoti_compile_and_package(
            program,
            package_path=str(package),
            inductor_configs={"aot_inductor.metadata": metadata},
        )
        package.replace(temporary)
