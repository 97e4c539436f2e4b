"""Exported models with the Predictor's interface."""

from __future__ import annotations

import zipfile
from abc import abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.structures import Boxes, ImageList, Instances
from torch import Tensor

from salience_detr.checkpoint import ScoreThresholds
from salience_detr.detector import Detector, ModelDetector
from salience_detr.export.graph import INPUTS, OUTPUTS
from salience_detr.export.info import METADATA_KEY, DetectorInfo, ExportError
from salience_detr.export.openvino import (
    PRECISIONS,
    check_openvino,
    make_core,
    read_metadata,
    weights_path,
)
from salience_detr.modeling.postprocess import clip_detections
from salience_detr.modeling.salience_maps import salience_maps
from salience_detr.modeling.structures import ModelInput
from salience_detr.utils.errors import one_line


class ExportedDetector(ModelDetector):
    """A detector that runs an exported :class:`salience_detr.export.graph.DetectionGraph`.

    Args:
        info: metadata of the file.
        source: the file, for messages.
        options: ``score_threshold`` and ``batch_size`` of :class:`ModelDetector`.
    """

    def __init__(
        self, info: DetectorInfo, *, source: str | Path = Detector.source, **options: Any
    ) -> None:
        self.info = info
        self.source = str(source)
        divisibility = info.size_divisibility
        super().__init__(
            info.classes, info.make_mapper(), size_divisibility=divisibility, **options
        )

    @property
    def best_thresholds(self) -> ScoreThresholds | None:
        return self.info.thresholds

    @abstractmethod
    def run(self, images: Tensor, image_sizes: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Run the graph; see :meth:`salience_detr.export.graph.DetectionGraph.forward`."""

    def _infer(self, inputs: list[ModelInput]) -> list[tuple[Instances, np.ndarray]]:
        # Smaller images are at the upper left of the batch.
        batch = ImageList.from_tensors([x["image"] for x in inputs])
        images = batch.tensor.float()
        sizes = torch.tensor(batch.image_sizes)
        boxes, scores, labels, salience = self.run(images, sizes)
        heat = salience_maps(salience, inputs, self.size_divisibility)

        results = []
        for i, x in enumerate(inputs):
            # Boxes are in pixels of the resized image; a score of 0 is no detection.
            height, width = x["height"], x["width"]
            rows, columns = sizes[i].tolist()
            scale = torch.tensor([width / columns, height / rows]).repeat(2)
            is_detection = scores[i] > 0
            instances = Instances(
                (height, width),
                pred_boxes=Boxes(boxes[i][is_detection] * scale),
                scores=scores[i][is_detection],
                pred_classes=labels[i][is_detection],
            )
            # Scaling may round a box beyond the image.
            results.append((clip_detections(instances), heat[i]))
        return results


class OnnxDetector(ExportedDetector):
    """A detector on ONNX Runtime, from an ONNX file of tools/export.py.

    Args:
        path: the file.
        device: "cpu", "cuda", "cuda:N", or "auto" (a GPU if ONNX Runtime can use one).
        threads: threads of one operator; 0 = ONNX Runtime's choice.
        options: ``score_threshold`` and ``batch_size`` of :class:`ModelDetector`.

    Raises:
        ExportError: the file is missing, not ONNX, or not a model of this project; ONNX Runtime is
            not installed or lacks the device.
    """

    def __init__(
        self, path: str | Path, *, device: str = "auto", threads: int = 0, **options: Any
    ) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            remedy = "pip install 'salience_detr[onnx]'"
            raise ExportError(f"ONNX files need onnxruntime: {remedy}") from error
        if not Path(path).is_file():
            raise ExportError(f"there is no file {path}; export one with tools/export.py")

        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = threads
        settings.log_severity_level = 3  # warnings are about nodes that the optimizer removes
        providers = choose_providers(str(device), onnxruntime.get_available_providers())
        try:
            self.session = onnxruntime.InferenceSession(str(path), settings, providers=providers)
        except Exception as error:  # ONNX Runtime's exceptions have no common base
            reason = one_line(error)[:200]
            raise ExportError(f"{path} is not an ONNX file that can be run: {reason}") from error

        metadata = self.session.get_modelmeta().custom_metadata_map
        info = DetectorInfo.from_json(metadata.get(METADATA_KEY), path)
        super().__init__(info, source=path, **options)

    def run(self, images: Tensor, image_sizes: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        feed = dict(zip(INPUTS, (images.numpy(), image_sizes.numpy()), strict=True))
        outputs = self.session.run(list(OUTPUTS), feed)
        boxes, scores, labels, salience = map(torch.from_numpy, outputs)
        return boxes, scores, labels, salience


def choose_providers(device: str, available: list[str]) -> list[Any]:
    """Return ONNX Runtime's providers for a device, the CPU last.

    Raises:
        ExportError: the device is unknown, or this build of ONNX Runtime lacks it.
    """
    cpu = "CPUExecutionProvider"
    cuda = "CUDAExecutionProvider"
    kind, _, number = device.partition(":")

    if kind not in ("auto", "cpu", "cuda") or not (number or "0").isdigit():
        raise ExportError(f"the device {device!r} is unknown to ONNX Runtime; use auto, cpu, cuda")
    if kind == "cuda" and cuda not in available:
        raise ExportError(
            f"this ONNX Runtime has no CUDA, only {', '.join(available)}; install onnxruntime-gpu"
        )
    if kind == "cpu" or cuda not in available:
        return [cpu]

    # Under torchrun each process has its own current device.
    if not number and torch.cuda.is_available():
        number = str(torch.cuda.current_device())
    return [(cuda, {"device_id": int(number or 0)}), cpu]


class OpenVinoDetector(ExportedDetector):
    """A detector on OpenVINO, from an .xml file of tools/export.py and the .bin beside it.

    OpenVINO's own default is bfloat16 on processors that have it (AVX-512 BF16, AMX), which loses
    detections. Here the default is float32 everywhere.

    Args:
        path: the .xml file.
        device: "cpu", a name of OpenVINO such as "gpu" or "gpu.1", or "auto" for the CPU.
        dtype: "float32", or "bfloat16" on devices that have it.
        threads: threads of the CPU; 0 = OpenVINO's choice.
        options: ``score_threshold`` and ``batch_size`` of :class:`ModelDetector`.

    Raises:
        ExportError: a file is missing, damaged, or not a model of this project; OpenVINO is not
            installed, or lacks the device or the dtype on it.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        device: str = "auto",
        dtype: str = "float32",
        threads: int = 0,
        **options: Any,
    ) -> None:
        check_openvino()
        path = Path(path)
        if not path.is_file():
            raise ExportError(f"there is no file {path}; export one with tools/export.py")
        info = DetectorInfo.from_json(read_metadata(path), path)
        if not weights_path(path).is_file():
            raise ExportError(f"{path} needs {weights_path(path)}, which is missing; copy both")

        core = make_core()
        name = choose_openvino_device(str(device), core.available_devices)
        if dtype not in PRECISIONS:
            raise ExportError(f"the dtype {dtype!r} is unknown here; use {', '.join(PRECISIONS)}")
        capabilities = core.get_property(name, "OPTIMIZATION_CAPABILITIES")
        if dtype == "bfloat16" and "BF16" not in capabilities:
            raise ExportError(f"{name} does not compute in bfloat16; use float32")

        settings: dict[str, Any] = {"INFERENCE_PRECISION_HINT": PRECISIONS[dtype]}
        if threads:
            settings["INFERENCE_NUM_THREADS"] = threads
        try:
            self.compiled = core.compile_model(core.read_model(path), name, settings)
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1][:200]
            raise ExportError(
                f"{path} cannot be run, or its .bin is another's: {reason}"
            ) from error

        super().__init__(info, source=path, **options)

    def run(self, images: Tensor, image_sizes: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        # A request serves one thread at a time, and its memory is freed with it.
        request = self.compiled.create_infer_request()
        feed = dict(zip(INPUTS, (images.numpy(), image_sizes.numpy()), strict=True))
        results = request.infer(feed)
        boxes, scores, labels, salience = [torch.from_numpy(results[name]) for name in OUTPUTS]
        return boxes, scores, labels, salience


def choose_openvino_device(device: str, available: list[str]) -> str:
    """Return OpenVINO's name of a device.

    Raises:
        ExportError: this machine's OpenVINO lacks it.
    """
    name = "CPU" if device == "auto" else device.upper()
    if name in available or f"{name}.0" in available:
        return name
    names = ", ".join(x.lower() for x in available)
    raise ExportError(f"the device {device!r} is unknown to OpenVINO here; use auto, {names}")


class PackagedDetector(ExportedDetector):
    """A detector from a .pt2 file of tools/export.py.

    The file is a program of torch.export, or a package that AOTInductor has compiled for one kind
    of device and processor.

    Args:
        path: the file. It is code: load only what you trust.
        options: ``score_threshold`` and ``batch_size`` of :class:`ModelDetector`.

    Raises:
        ExportError: the file is missing, broken, or not a model of this project.
    """

    def __init__(self, path: str | Path, **options: Any) -> None:
        if not zipfile.is_zipfile(path):
            raise ExportError(f"{path} is not a .pt2 file, or it is truncated or missing")
        with zipfile.ZipFile(path) as archive:
            is_compiled = any("aotinductor" in name for name in archive.namelist())

        load = load_package if is_compiled else load_program
        try:
            self.graph, text, self.device = load(str(path))
        except Exception as error:  # a damaged file can fail in any way
            raise ExportError(f"{path} cannot be loaded: {one_line(error)[:200]}") from error

        super().__init__(DetectorInfo.from_json(text, path), source=path, **options)

    @torch.inference_mode()
    def run(self, images: Tensor, image_sizes: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        outputs = self.graph(images.to(self.device), image_sizes.to(self.device))
        boxes, scores, labels, salience = [x.cpu() for x in outputs]
        return boxes, scores, labels, salience


def load_program(path: str) -> tuple[Callable[..., Any], str | None, str]:
    """Return the graph of a program of torch.export, its metadata, and its device."""
    notes = {METADATA_KEY: ""}
    program = torch.export.load(path, extra_files=notes)
    return program.module(check_guards=False), notes[METADATA_KEY], "cpu"


def load_package(path: str) -> tuple[Callable[..., Any], str | None, str]:
    """Return the compiled graph of a package of AOTInductor, its metadata, and its device."""
    package = torch._inductor.aoti_load_package(path)
    metadata = package.get_metadata()
    return package, metadata.get(METADATA_KEY), metadata.get("AOTI_DEVICE_KEY", "cpu")
