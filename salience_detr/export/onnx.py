"""Writing a recorded model as an ONNX file of plain operators."""

from __future__ import annotations

import contextlib
import io
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

from salience_detr.export.graph import INPUTS, OUTPUTS
from salience_detr.export.info import KEY, DetectorInfo, ExportError
from salience_detr.export.program import quiet
from salience_detr.utils.errors import one_line
from salience_detr.utils.files import written_whole

DEFAULT_OPSET = 18
LAST_OPSET = 21
AXES = {"images": {0: "batch", 2: "height", 3: "width"}}


def export_onnx(
    program: ExportedProgram,
    path: Path,
    info: DetectorInfo,
    *,
    opset: int = DEFAULT_OPSET,
    simplify: bool = False,
) -> None:
    """Write an ONNX file with free batch size, height and width, that :class:`salience_detr.export.OnnxDetector` reads.

    Inputs and outputs are those of :class:`salience_detr.export.graph.DetectionGraph`.

    Args:
        program: see :func:`salience_detr.export.program.record`.
        path: of the file.
        info: goes into the file's metadata.
        opset: version of the operators, 18 to 21.
        simplify: run onnxslim over the graph.

    Raises:
        ExportError: a package is missing, or the opset cannot be written.
    """
    check_export(opset)
    import onnx

    model = to_onnx(program, opset)
    if simplify:
        model = simplified(model)
    name_axes(model)
    onnx.helper.set_model_props(model, {KEY: info.to_json()})
    model.producer_name = "salience_detr"
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as error:
        raise ExportError(
            f"no valid file of opset {opset} can be written: {one_line(error)}"
        ) from error
    with written_whole(path) as temporary:
        onnx.save(model, str(temporary))


def check_export(opset: int) -> None:
    """Raise ExportError if a package is missing, or the opset cannot be written."""
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ExportError(
            f"the export needs {error.name}: pip install 'salience_detr[onnx]'"
        ) from error
    if not DEFAULT_OPSET <= opset <= LAST_OPSET:
        raise ExportError(f"opset {opset} cannot be written; use {DEFAULT_OPSET} to {LAST_OPSET}")


def to_onnx(program: ExportedProgram, opset: int) -> Any:
    """The program as a model in memory."""
    from onnxscript import opset18

    def stable_sort(
        x: Any, stable: bool | None = None, dim: int = -1, descending: bool = False
    ) -> Any:
        # TopK gives equal values in the order of their indices.
        return opset18.TopK(
            x, opset18.Shape(x, start=dim, end=dim + 1 or None), axis=dim, largest=int(descending)
        )

    with quiet(), silent():
        exported = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=opset,
            input_names=list(INPUTS),
            output_names=list(OUTPUTS),
            custom_translation_table={torch.ops.aten.sort.stable: stable_sort},
            verbose=False,
            optimize=False,
        )
        assert exported is not None
        return optimized(exported.model)


def optimized(model: Any) -> Any:
    """The model without what is computed twice or never changes.

    A recorded graph computes the same sides anew at every place. PyTorch's own optimization takes minutes over that;
    after equal nodes have been joined it takes seconds.
    """
    import onnx_ir
    from onnx_ir.passes.common import CommonSubexpressionEliminationPass, RemoveUnusedNodesPass
    from onnxscript import optimizer

    signature = [(value.type, value.shape) for value in model.graph.outputs]
    CommonSubexpressionEliminationPass()(model)
    RemoveUnusedNodesPass()(model)
    optimizer.optimize_ir(model, num_iterations=1)
    for value, (kind, shape) in zip(model.graph.outputs, signature, strict=True):
        value.type, value.shape = kind, shape
    return onnx_ir.to_proto(model)


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """Without what the exporter's libraries print of their own steps."""
    loggers = [logging.getLogger(name) for name in ("onnxscript", "onnx_ir")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


def simplified(model: Any) -> Any:
    """The model after onnxslim.

    Raises:
        ExportError: onnxslim is not installed.
    """
    try:
        import onnxslim
    except ImportError as error:
        raise ExportError("--simplify needs onnxslim: pip install 'salience_detr[onnx]'") from error
    return onnxslim.slim(model)


def name_axes(model: Any) -> None:
    """Call the free sides by their names, in place, also where others are computed from them."""
    names = {}
    for value in model.graph.input:
        for axis, name in AXES.get(value.name, {}).items():
            names[value.type.tensor_type.shape.dim[axis].dim_param] = name
    pattern = re.compile("|".join(rf"\b{re.escape(old)}\b" for old in names))
    for value in [*model.graph.input, *model.graph.output, *model.graph.value_info]:
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_param = pattern.sub(lambda match: names[match[0]], dim.dim_param)
