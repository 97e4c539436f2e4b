"""ONNX files of plain operators, written from programs of torch.export."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.export import ExportedProgram

from salience_detr.export.graph import INPUTS, OUTPUTS
from salience_detr.export.info import METADATA_KEY, DetectorInfo, ExportError
from salience_detr.export.program import quiet
from salience_detr.layers.operator import is_compiled_for
from salience_detr.utils.files import written_whole

if TYPE_CHECKING:  # the packages are optional
    import onnx
    import onnx_ir

DEFAULT_OPSET = 18
LAST_OPSET = 21
# Where PyTorch's exporter notes the modules of a node.
SCOPES_KEY = "pkg.torch.onnx.name_scopes"
# The node of the deformable attention by this package's operator.
DOMAIN = "salience_detr"
OPERATOR = "DeformableAttention"
AXES = {"images": {0: "batch", 2: "height", 3: "width"}}


def export_onnx(
    program: ExportedProgram,
    path: Path,
    info: DetectorInfo,
    *,
    opset: int = DEFAULT_OPSET,
    simplify: bool = False,
) -> None:
    """Write an ONNX file for :class:`OnnxDetector`, with free batch size, height and width.

    Inputs and outputs are those of :class:`salience_detr.export.graph.DetectionGraph`.

    Args:
        program: result of :func:`salience_detr.export.program.export_program`.
        path: path of the file.
        info: goes into the file's metadata.
        opset: version of the operators, 18 to 21.
        simplify: run onnxslim over the graph.

    Raises:
        ExportError: if a package is missing, or if the opset cannot be written.
    """
    model = build_onnx(program, info, opset=opset, simplify=simplify)
    with written_whole(path) as temporary:
        temporary.write_bytes(model.SerializeToString())


def build_onnx(
    program: ExportedProgram, info: DetectorInfo, *, opset: int, simplify: bool
) -> onnx.ModelProto:
    """Build the content of an ONNX file; see :func:`export_onnx`."""
    check_export(opset)
    import onnx

    model = to_onnx(program, opset)
    name_nodes(model)

    if simplify:
        import onnxslim

        model = onnxslim.slim(model)

    name_axes(model)
    onnx.helper.set_model_props(model, {METADATA_KEY: info.to_json()})
    model.producer_name = "salience_detr"

    onnx.checker.check_model(model)
    return model


def check_export(opset: int) -> None:
    """Raise ExportError if a package is missing, or if the opset cannot be written."""
    for package in ("onnx", "onnxscript", "onnxslim"):
        if find_spec(package) is None:
            raise ExportError(f"exporting needs {package}: pip install 'salience_detr[onnx]'")
    if not DEFAULT_OPSET <= opset <= LAST_OPSET:
        raise ExportError(f"opset {opset} cannot be written; use {DEFAULT_OPSET} to {LAST_OPSET}")


def to_onnx(program: ExportedProgram, opset: int) -> onnx.ModelProto:
    """Translate a program into an ONNX model in memory."""
    from onnxscript import opset18

    def stable_sort(
        x: Any, stable: bool | None = None, dim: int = -1, descending: bool = False
    ) -> Any:
        # TopK gives equal values in the order of their indices.
        size = opset18.Shape(x, start=dim, end=dim + 1 or None)
        return opset18.TopK(x, size, axis=dim, largest=int(descending))

    translations: dict[Any, Any] = {torch.ops.aten.sort.stable: stable_sort}
    if is_compiled_for("cpu"):
        operator = torch.ops.salience_detr.ms_deform_attn_fused
        translations[operator.default] = deformable_attention()

    with quiet():
        exported = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=opset,
            input_names=list(INPUTS),
            output_names=list(OUTPUTS),
            custom_translation_table=translations,
            verbose=False,
            optimize=False,
        )
        assert exported is not None
        return optimize_graph(exported.model)


def deformable_attention() -> Callable[..., Any]:
    """Return the node of the operator, called with the inputs of ``ms_deform_attn_fused``."""
    from onnx.defs import OpSchema
    from onnxscript.values import Op, Opset

    # The second and the third one are the shapes and starts of the levels.
    inputs = []
    for number in range(6):
        kind = "tensor(int64)" if number in (1, 2) else "tensor(float)"
        inputs.append(OpSchema.FormalParameter(f"input_{number}", kind))
    outputs = [OpSchema.FormalParameter("output", "tensor(float)")]
    schema = OpSchema(OPERATOR, DOMAIN, 1, inputs=inputs, outputs=outputs)
    node = Op(Opset(DOMAIN, 1), OPERATOR, schema)
    return lambda *tensors: node(*tensors)


def optimize_graph(model: onnx_ir.Model) -> onnx.ModelProto:
    """Remove what is computed twice or is constant.

    An exported graph computes the same sides anew at every place. PyTorch's own optimization takes
    minutes over that; after equal nodes have been joined it takes seconds.
    """
    import onnx_ir
    from onnx_ir.passes.common import CommonSubexpressionEliminationPass, RemoveUnusedNodesPass
    from onnxscript import optimizer

    types = [(value.type, value.shape) for value in model.graph.outputs]
    CommonSubexpressionEliminationPass()(model)
    RemoveUnusedNodesPass()(model)
    optimizer.optimize_ir(model, num_iterations=1)

    # The passes lose the types of the outputs.
    for value, (value_type, shape) in zip(model.graph.outputs, types, strict=True):
        value.type = value_type
        value.shape = shape
    return onnx_ir.to_proto(model)


def name_nodes(model: onnx.ModelProto) -> None:
    """Name each node by the module that computes it, in place: model.neck.projections.0/Conv_7.

    Nodes of no module, such as those of an optimization, keep their names.
    """
    for number, node in enumerate(model.graph.node):
        notes = {entry.key: entry.value for entry in node.metadata_props}
        # The names of the modules from the outermost on, then that of the operation.
        scopes = ast.literal_eval(notes.get(SCOPES_KEY, "[]"))
        modules = [scope for scope in scopes[:-1] if scope]
        if modules:
            node.name = f"{modules[-1]}/{node.op_type}_{number}"


def name_axes(model: onnx.ModelProto) -> None:
    """Name the free axes of the inputs, in place, and use the names where others depend on them."""
    names = {}
    for value in model.graph.input:
        for axis, name in AXES.get(value.name, {}).items():
            names[value.type.tensor_type.shape.dim[axis].dim_param] = name
    pattern = re.compile("|".join(rf"\b{re.escape(old)}\b" for old in names))

    for value in [*model.graph.input, *model.graph.output, *model.graph.value_info]:
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_param = pattern.sub(lambda match: names[match[0]], dim.dim_param)
