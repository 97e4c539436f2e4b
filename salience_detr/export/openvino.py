"""OpenVINO's files, an .xml and a .bin of weights, and the metadata in the .xml."""

from __future__ import annotations

import os
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from salience_detr.export.info import METADATA_KEY, DetectorInfo, ExportError
from salience_detr.utils.errors import one_line
from salience_detr.utils.files import written_whole

if TYPE_CHECKING:  # the packages are optional
    import onnx
    import openvino

# Where OpenVINO writes the entries of Model.set_rt_info.
METADATA_PATH = f"rt_info/{METADATA_KEY}"
PRECISIONS = {"float32": "f32", "bfloat16": "bf16"}


def check_openvino() -> None:
    """Raise ExportError if the package is missing."""
    if find_spec("openvino") is None:
        remedy = "pip install 'salience_detr[openvino]'"
        raise ExportError(f"OpenVINO files need openvino: {remedy}")


def write_openvino(model: onnx.ModelProto, path: Path, info: DetectorInfo) -> None:
    """Write the .xml and the .bin of a model in float32.

    Args:
        model: result of :func:`salience_detr.export.onnx.build_onnx`.
        path: path of the .xml; the .bin lies beside it.
        info: goes into the .xml.

    Raises:
        ExportError: if the package is missing.
    """
    save_openvino(to_openvino(model), path, info)


def make_core() -> openvino.Core:
    """Return a core of OpenVINO that knows the operator of ``--sampling operator``."""
    import openvino

    from salience_detr.export.openvino_operator import add_operator

    core = openvino.Core()
    add_operator(core)
    return core


def to_openvino(model: onnx.ModelProto) -> openvino.Model:
    """Return an ONNX model as OpenVINO's, whose constants are computed.

    Raises:
        ExportError: if the package is missing.
    """
    check_openvino()
    from openvino import passes

    converted = make_core().read_model(model.SerializeToString())
    manager = passes.Manager()
    manager.register_pass(passes.ConstantFolding())
    manager.run_passes(converted)
    return converted


def save_openvino(model: openvino.Model, path: Path, info: DetectorInfo) -> None:
    """Write the .xml and the .bin of a model, in the precisions that it has."""
    import openvino

    model.set_rt_info(info.to_json(), METADATA_KEY)

    # The .xml comes last: it is never there without its weights.
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        draft = Path(folder) / "model.xml"
        openvino.save_model(model, draft, compress_to_fp16=False)
        os.replace(weights_path(draft), weights_path(path))
        os.replace(draft, path)


def weights_path(path: Path) -> Path:
    """Return the path of the weights that belong to an .xml."""
    return path.with_suffix(".bin")


def file_bytes(path: Path) -> int:
    """Return the size of an exported model of any format; an .xml counts with its weights."""
    size = path.stat().st_size
    return size + weights_path(path).stat().st_size if path.suffix == ".xml" else size


def read_metadata(path: Path) -> str | None:
    """Return the metadata in an .xml, None if it has none; OpenVINO is not needed.

    Raises:
        ExportError: the file is not XML, or cannot be read.
    """
    entry = parse(path).find(METADATA_PATH)
    return None if entry is None else entry.get("value")


def write_metadata(path: Path, text: str) -> None:
    """Replace the metadata in an .xml that has some; its graph stays as it is."""
    tree = parse(path)
    entry = tree.find(METADATA_PATH)
    assert entry is not None
    entry.set("value", text)

    with written_whole(path) as temporary:
        tree.write(temporary, encoding="utf-8", xml_declaration=True)


def parse(path: Path) -> ElementTree.ElementTree[ElementTree.Element]:
    """Return the content of an .xml.

    Raises:
        ExportError: the file is not XML, or cannot be read.
    """
    try:
        return ElementTree.parse(path)
    except (OSError, ValueError, LookupError, ElementTree.ParseError) as error:
        raise ExportError(
            f"{path} is no file of OpenVINO, or it is damaged: {one_line(error)}; export it again"
        ) from error
