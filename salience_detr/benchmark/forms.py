"""Forms in which a model detects: PyTorch's modes, and exported files in their runtimes.

The functions run in a process of the form's own: a :class:`salience_detr.benchmark.worker.Worker`.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from salience_detr.benchmark.flops import noise_image
from salience_detr.benchmark.measurements import Settings
from salience_detr.benchmark.timing import time_calls
from salience_detr.config import ConfigError, load_config
from salience_detr.detector import ModelDetector, prepare_input
from salience_detr.evaluation.detector_evaluation import evaluate_detector
from salience_detr.export import DetectorInfo, ExportError
from salience_detr.export.detectors import OnnxDetector, OpenVinoDetector, PackagedDetector
from salience_detr.export.onnx import DEFAULT_OPSET, build_onnx
from salience_detr.export.openvino import check_openvino, file_bytes, write_openvino
from salience_detr.export.program import export_program, quiet, save_program
from salience_detr.predictor import Predictor
from salience_detr.utils.files import written_whole
from salience_detr.utils.process_memory import peak_memory, resident_bytes

if TYPE_CHECKING:  # the package is optional
    import onnx

TURN_MS = 300.0  # a turn of a form goes on until its calls have taken this long
OPERATOR_FILE = "model_operator.xml"
# Files that the export writes with --int8, and its flags for them.
INT8_FILES = {
    "model_int8.xml": "--int8",
    "model_operator_int8.xml": "--int8 --sampling operator",
}


@dataclass(frozen=True)
class Form:
    """A form of the config's model.

    Attributes:
        runtime: what runs it, for tables; with ``optimize`` the mode of the Predictor.
        dtype: "float32" or "bfloat16"; of a graph in int8 with the dtype of its other layers.
        optimize: of :class:`Predictor`; None for an exported file.
        file: name of the exported file; None for a checkpoint.
    """

    runtime: str
    dtype: str
    optimize: str | None = None
    file: str | None = None


FORMS = (
    Form("eager", "float32", optimize="none"),
    Form("eager", "bfloat16", optimize="none"),
    Form("fused", "float32", optimize="fused"),
    Form("fused", "bfloat16", optimize="fused"),
    Form("compiled", "float32", optimize="compiled"),
    Form("compiled", "bfloat16", optimize="compiled"),
    Form("ONNX Runtime", "float32", file="model.onnx"),
    Form("OpenVINO", "float32", file="model.xml"),
    Form("OpenVINO", "bfloat16", file="model.xml"),
    Form("OpenVINO", "int8, float32", file="model_int8.xml"),
    Form("OpenVINO", "int8, bfloat16", file="model_int8.xml"),
    Form("OpenVINO, operator", "float32", file=OPERATOR_FILE),
    Form("OpenVINO, operator", "bfloat16", file=OPERATOR_FILE),
    Form("OpenVINO, operator", "int8, float32", file="model_operator_int8.xml"),
    Form("OpenVINO, operator", "int8, bfloat16", file="model_operator_int8.xml"),
    Form("pt2", "float32", file="model.pt2"),
)


class Start(NamedTuple):
    """Start of a form in a new process.

    Attributes:
        seconds: from the loading to the first detection, compilation included.
        empty_bytes: resident memory of the process before it.
    """

    seconds: float
    empty_bytes: int | None


class Precision(NamedTuple):
    """AP and AP50 on a test set, in percent."""

    ap: float
    ap50: float


def open_predictor(settings: Settings, *, dtype: str, optimize: str) -> Predictor:
    """Load the config's model, with the same random weights each time if it has none.

    Raises:
        ConfigError, CheckpointError, ValueError: the config or the weights cannot be used.
    """
    torch.manual_seed(0)
    return Predictor(
        settings.config_file,
        settings.weights,
        device="cpu",
        dtype=dtype,
        overrides=settings.overrides,
        trust_config=settings.trust_config,
        image_size=min(settings.size),
        optimize=optimize,
    )


def check_form_size(settings: Settings, predictor: Predictor) -> None:
    """Check that the predictor computes images of the size as they are.

    Raises:
        ConfigError: it resizes them.
    """
    height, width = settings.size
    resized = prepare_input(predictor.mapper, image_in_memory(settings.size))["image"].shape[1:]
    if tuple(resized) != (height, width):
        raise ConfigError(
            f"--size {height} {width}: the config's test makes {resized[0]}x{resized[1]} of it; "
            "give that size, or change max_size of dataloader.test.mapper.augmentations"
        )


@cache  # the files are written in one process
def export(
    settings: Settings, sampling: str = "grid_sample"
) -> tuple[torch.export.ExportedProgram, DetectorInfo]:
    """Export the model."""
    predictor = open_predictor(settings, dtype="float32", optimize="none")
    program = export_program(predictor, sampling=sampling)
    return program, DetectorInfo.from_predictor(predictor)


@cache
def onnx_model(settings: Settings, sampling: str = "grid_sample") -> onnx.ModelProto:
    """Return the model as ONNX, of which OpenVINO's is made, too."""
    # PyTorch's exporter changes the program, and cannot take it again.
    program, info = export(settings, sampling)
    return build_onnx(copy.deepcopy(program), info, opset=DEFAULT_OPSET, simplify=True)


def write_file(settings: Settings, path: Path) -> int:
    """Write an exported file, and return its bytes.

    Raises:
        ExportError: a package is missing, or the file cannot be made here.
    """
    if path.name in INT8_FILES:
        raise ExportError(
            f"int8 needs {path.name} in the folder of --exports: tools/export.py --output "
            f"DIR/{path.name} {INT8_FILES[path.name]} --calibration IMAGES writes it"
        )
    if path.suffix == ".xml":
        check_openvino()

    sampling = "operator" if path.name == OPERATOR_FILE else "grid_sample"
    program, info = export(settings, sampling)
    if path.suffix == ".onnx":
        with written_whole(path) as temporary:
            temporary.write_bytes(onnx_model(settings).SerializeToString())
    elif path.suffix == ".xml":
        write_openvino(onnx_model(settings, sampling), path, info)
    else:
        save_program(program, path, info)
    return file_bytes(path)


def open_form(settings: Settings, form: Form, folder: Path) -> ModelDetector:
    """Load a form, with as many threads as PyTorch has.

    Args:
        folder: of the exported files.

    Raises:
        ExportError: a package or an instruction set is missing, or the file is not right.
    """
    if form.optimize is not None:
        return open_predictor(settings, dtype=form.dtype, optimize=form.optimize)

    assert form.file is not None
    path = folder / form.file
    threads = torch.get_num_threads()
    if path.suffix == ".onnx":
        return OnnxDetector(path, device="cpu", threads=threads)
    if path.suffix == ".xml":
        # A graph says itself what is int8.
        dtype = form.dtype.removeprefix("int8, ")
        return OpenVinoDetector(path, device="cpu", dtype=dtype, threads=threads)
    return PackagedDetector(path)


@cache  # a process has one form
def detector_of(settings: Settings, form: Form, folder: Path) -> ModelDetector:
    """Return the detector of this process, which is loaded at the first call."""
    return open_form(settings, form, folder)


def detection(settings: Settings, form: Form, folder: Path) -> Callable[[], object]:
    """Return a function that detects on an image of noise in memory."""
    detector = detector_of(settings, form, folder)
    image = image_in_memory(settings.size)
    return lambda: detector(image)


def image_in_memory(size: tuple[int, int]) -> np.ndarray:
    """Return an (H, W, 3) uint8 RGB image of noise."""
    image: np.ndarray = noise_image(*size)["image"].permute(1, 2, 0).contiguous().numpy()
    return image


def start_form(settings: Settings, form: Form, folder: Path, cache: Path) -> Start:
    """Load a form and detect once, with the compiler's cache in a folder."""
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(cache)
    empty_bytes = resident_bytes("VmRSS")

    # Compilers tell much that is of no use in a table.
    with quiet():
        (milliseconds,) = time_calls(lambda: detection(settings, form, folder)(), 1)
    return Start(milliseconds / 1e3, empty_bytes)


def time_turn(settings: Settings, form: Form, folder: Path) -> list[float]:
    """Return the milliseconds of the calls of one turn, at least one."""
    call = detection(settings, form, folder)
    milliseconds = time_calls(call, 1)
    while sum(milliseconds) < TURN_MS:
        milliseconds += time_calls(call, 1)
    return milliseconds


def peak_bytes(settings: Settings, form: Form, folder: Path) -> int:
    """Return the most memory of the process so far."""
    return peak_memory()


def measure_precision(settings: Settings, form: Form, folder: Path) -> Precision:
    """Return the AP on the test set of the config."""
    config = load_config(settings.config_file, settings.overrides, trust=settings.trust_config)
    with quiet():
        metrics = evaluate_detector(config, detector_of(settings, form, folder))
    return Precision(metrics["AP"], metrics["AP50"])


def size_on_disk(settings: Settings, form: Form, folder: Path) -> int:
    """Return the bytes of what the form is loaded from; of random weights those in memory."""
    if form.file is not None:
        return file_bytes(folder / form.file)

    detector = detector_of(settings, form, folder)
    if settings.weights is not None:
        return Path(detector.source).stat().st_size
    assert isinstance(detector, Predictor)
    return sum(x.numel() * x.element_size() for x in detector.model.state_dict().values())
