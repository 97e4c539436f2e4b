"""Score thresholds written into checkpoints and exported models."""

from __future__ import annotations

import dataclasses
import json
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

from salience_detr.checkpoint import ScoreThresholds, read_classes
from salience_detr.checkpoint.files import store_thresholds
from salience_detr.data.classes import ClassList
from salience_detr.export import openvino
from salience_detr.export.info import METADATA_KEY, DetectorInfo, ExportError
from salience_detr.utils.errors import one_line
from salience_detr.utils.files import written_whole

if TYPE_CHECKING:  # the package is optional
    import onnx

CHECKPOINTS = (".safetensors", ".pth", ".pt")
EXPORTED = (".onnx", ".pt2", ".xml")


def read_model_classes(path: Path) -> ClassList | None:
    """Return the classes of a checkpoint or exported model, None if it does not name them.

    Raises:
        CheckpointError, ExportError: the file is none, or cannot be read.
    """
    suffix = path.suffix.lower()
    # The metadata of an exported model always name its classes.
    if suffix in EXPORTED:
        table = read_info(path).classes
        return ClassList(table.names, table.category_ids)

    if suffix not in CHECKPOINTS:
        endings = ", ".join((*CHECKPOINTS, *EXPORTED))
        raise ExportError(f"{path} can hold no thresholds; files of weights end in {endings}")
    return read_classes(path)


def write_thresholds(path: Path, thresholds: ScoreThresholds) -> None:
    """Write score thresholds into a checkpoint or exported model; all else in it stays as it is.

    Args:
        path: the file, which is replaced as a whole or stays as it is.
        thresholds: by the file's own names of the classes.

    Raises:
        CheckpointError, ExportError: the file cannot be read or written.
    """
    if path.suffix.lower() not in EXPORTED:
        store_thresholds(path, thresholds)
        return

    # The graph is not looked at: its bytes stay the same.
    info = dataclasses.replace(read_info(path), thresholds=thresholds)
    if path.suffix.lower() == ".xml":
        openvino.write_metadata(path, info.to_json())
        return

    if path.suffix.lower() == ".onnx":
        model = load_onnx(path)
        for entry in model.metadata_props:
            if entry.key == METADATA_KEY:
                entry.value = info.to_json()

        with written_whole(path) as temporary:
            temporary.write_bytes(model.SerializeToString())
        return

    with written_whole(path) as temporary:
        copy_archive(path, temporary, info.to_json())


def read_info(path: Path) -> DetectorInfo:
    """Read the metadata of an exported model without loading its graph.

    Raises:
        ExportError: the file cannot be read, or is not a model of this project.
    """
    if not path.is_file():
        raise ExportError(f"there is no file {path}; export one with tools/export.py")
    if path.suffix.lower() == ".onnx":
        entries = {entry.key: entry.value for entry in load_onnx(path).metadata_props}
        return DetectorInfo.from_json(entries.get(METADATA_KEY), path)
    if path.suffix.lower() == ".xml":
        return DetectorInfo.from_json(openvino.read_metadata(path), path)

    try:
        with zipfile.ZipFile(path) as archive:
            texts = [find_metadata(name, archive.read(name)) for name in notes_in(archive)]
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise ExportError(f"{path} cannot be read: {one_line(error)}; export it again") from error
    return DetectorInfo.from_json(next(filter(None, texts), None), path)


def load_onnx(path: Path) -> onnx.ModelProto:
    """Return the content of an ONNX file.

    Raises:
        ExportError: the package is missing, or the file is not ONNX.
    """
    try:
        import onnx
    except ImportError as error:
        remedy = "pip install 'salience_detr[onnx]'"
        raise ExportError(f"storing thresholds in {path} needs onnx: {remedy}") from error
    try:
        return onnx.load(str(path))
    except Exception as error:  # a damaged file can fail in any way
        raise ExportError(f"{path} is not an ONNX file: {one_line(error)[:200]}") from error


def notes_in(archive: zipfile.ZipFile) -> list[str]:
    """Return the members of a .pt2 file that may hold the metadata.

    A program of torch.export has them in a file of their own, a package of AOTInductor among other
    entries of a JSON file.
    """
    endings = (f"/extra/{METADATA_KEY}", "_metadata.json")
    return [name for name in archive.namelist() if name.endswith(endings)]


def find_metadata(name: str, content: bytes) -> str | None:
    """Return the metadata in a member of a .pt2 file, None if it has none."""
    if not name.endswith(".json"):
        return content.decode()
    entries = json.loads(content)
    return entries.get(METADATA_KEY) if isinstance(entries, dict) else None


def copy_archive(path: Path, copy: Path, text: str) -> None:
    """Copy a .pt2 file, with other metadata."""
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(copy, "w") as written:
        changed = notes_in(archive)
        for member in archive.infolist():
            content = archive.read(member)

            # Kernels of a package have files of metadata, too, without ours.
            if member.filename in changed and find_metadata(member.filename, content) is not None:
                if member.filename.endswith(".json"):
                    content = json.dumps({**json.loads(content), METADATA_KEY: text}).encode()
                else:
                    content = text.encode()
            written.writestr(member, content)
