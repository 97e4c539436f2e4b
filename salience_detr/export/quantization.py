"""Quantization of OpenVINO graphs to int8, by NNCF.

Only the layers where most of the multiplications are compute in int8: the backbone, the neck, the
feature fusion, and of the encoder the feed-forward blocks and the projections of the deformable
attention. What decides which tokens and boxes there are stays in float: salience, selections and
NMS, sampling offsets and attention weights, the decoder and its heads.

The nodes of a graph bear the names of the modules that compute them, which
:func:`salience_detr.export.onnx.name_nodes` gave them. Everything that is not wanted is ignored by
name: NNCF itself would also quantize sums and products of coordinates.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from salience_detr.export.graph import INPUTS
from salience_detr.export.info import DetectorInfo, ExportError
from salience_detr.export.openvino import check_openvino

if TYPE_CHECKING:  # the packages are optional
    import nncf
    import openvino

BACKBONE = "model.backbone."
# Groups of layers by the beginnings of their names. The gates of the feature fusion work on single
# pixels or end in a softmax.
PARTS = {
    "neck": re.compile(r"model\.neck\."),
    "feature_fusion": re.compile(r"model\.feature_fusion\.(?!.*\.gate\b)"),
    "encoder.ffn": re.compile(r"model\.encoder\.layers\.\d+\.ffn\.linear[12]/"),
    "encoder.projections": re.compile(
        r"model\.encoder\.layers\.\d+\.deformable_attention\.(value|output)_proj/"
    ),
}
LAYERS = ("Convolution", "GroupConvolution", "MatMul")
# What may lie between a constant and the layer whose weight it is.
FOLDABLE = ("Convert", "Reshape", "Transpose", "Multiply")

# Instructions that multiply int8 faster than float32, as Linux names them.
INT8_INSTRUCTIONS = ("avx512_vnni", "avx_vnni", "amx_int8", "i8mm")


def check_nncf() -> None:
    """Raise ExportError if a package for the quantization is missing."""
    check_openvino()
    if find_spec("nncf") is None:
        raise ExportError("int8 needs nncf: pip install 'salience_detr[openvino]'")


def find_layers(model: openvino.Model) -> dict[str, str]:
    """Return the group of each node that is to compute in int8, by its name.

    These are layers with constant weights, and the sums of residual blocks with a ReLU after them,
    which are computed together with the convolution before.

    Raises:
        ExportError: the names of the nodes do not tell their modules.
    """
    backbone: list[str] = []
    groups: dict[str, str] = {}
    for node in model.get_ordered_ops():
        name = node.get_friendly_name()
        is_layer = node.get_type_name() in LAYERS and is_constant(node.input_value(1).get_node())
        if name.startswith(BACKBONE) and (is_layer or is_residual_sum(node)):
            backbone.append(name)
        elif is_layer:
            for part, names in PARTS.items():
                if names.match(name):
                    groups[name] = part

    stages = dict(zip(backbone, stages_of(backbone), strict=True))
    if not stages or set(groups.values()) != set(PARTS):
        raise ExportError(
            "the graph does not tell of all nodes which module they are of; int8 was tested with "
            "PyTorch 2.15 and OpenVINO 2026.4"
        )
    return stages | groups


def is_constant(node: openvino.Node) -> bool:
    """Return whether a node is a constant, or computed from constants alone."""
    if node.get_type_name() == "Constant":
        return True
    inputs = [node.input_value(i).get_node() for i in range(node.get_input_size())]
    return node.get_type_name() in FOLDABLE and all(map(is_constant, inputs))


def is_residual_sum(node: openvino.Node) -> bool:
    """Return whether a node adds two maps whose sum goes into a ReLU."""
    if node.get_type_name() != "Add":
        return False
    inputs = [node.input_value(i).get_node() for i in range(2)]
    following = {target.get_node().get_type_name() for target in node.output(0).get_target_inputs()}
    return following == {"Relu"} and not any(map(is_constant, inputs))


def stages_of(names: Sequence[str]) -> list[str]:
    """Return the stage of the backbone, such as backbone.res3, of each of its nodes.

    It is the first part of the modules' names by which there are more than two stages.
    """
    paths = [name.partition("/")[0].removeprefix("model.").split(".") for name in names]
    longest = max(map(len, paths), default=0)
    for length in range(2, longest + 1):
        stages = [".".join(path[:length]) for path in paths]
        if len(set(stages)) > 2:
            return stages
    return ["backbone"] * len(names)


def quantize(
    model: openvino.Model,
    info: DetectorInfo,
    images: Sequence[Path],
    *,
    float_groups: Collection[str] = (),
) -> openvino.Model:
    """Return a copy of a graph with layers in int8.

    Args:
        model: a graph in float32, with the names of :mod:`salience_detr.export.onnx`. It stays.
        info: how images become inputs.
        images: the files that the ranges of values are measured on.
        float_groups: groups of :func:`find_layers` that stay in float32.

    Raises:
        ExportError: see :func:`find_layers`.
        ImageReadError: an image cannot be read.
    """
    import nncf

    groups = find_layers(model)
    wanted = {name for name, group in groups.items() if group not in float_groups}
    ignored = []
    for node in model.get_ordered_ops():
        is_operation = node.get_type_name() not in ("Constant", "Parameter", "Result")
        if is_operation and node.get_friendly_name() not in wanted:
            ignored.append(node.get_friendly_name())

    nncf.set_log_level(logging.ERROR)  # it would name each node that it ignores
    return nncf.quantize(
        model.clone(),
        calibration_data(info, images),
        subset_size=len(images),
        # Values after SiLU and LayerNorm are not symmetric.
        preset=nncf.QuantizationPreset.MIXED,
        target_device=nncf.TargetDevice.CPU,
        ignored_scope=nncf.IgnoredScope(names=ignored),
    )


def calibration_data(info: DetectorInfo, images: Sequence[Path]) -> nncf.Dataset:
    """Return the inputs of images, each alone, as a detector would make them."""
    import nncf

    mapper = info.make_mapper()

    def make_inputs(path: Path) -> dict[str, np.ndarray]:
        image = mapper({"file_name": str(path)})["image"].float().numpy()
        size = np.array([image.shape[1:]], dtype=np.int64)
        return dict(zip(INPUTS, (image[None], size), strict=True))

    return nncf.Dataset(images, make_inputs)
