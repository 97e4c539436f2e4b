"""Exported models with the Predictor's interface."""

from __future__ import annotations

import zipfile
from abc import abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.structures import Boxes, Instances
from torch import Tensor

from salience_detr.export.graph import INPUTS, OUTPUTS
from salience_detr.export.info import METADATA_KEY, DetectorInfo, ExportError
from salience_detr.predictor import ModelDetector, ModelInput, salience_maps


class ExportedDetector(ModelDetector):
    """A detector whose model is a graph from tensors to tensors (:class:`salience_detr.export.graph.DetectionGraph`).

    Args:
        info: from the file.
        score_threshold: detections below it are left out.
        batch_size: images that are computed together, at most.
    """

    def __init__(
        self, info: DetectorInfo, *, score_threshold: float = 0.0, batch_size: int = 8
    ) -> None:
        super().__init__(
            info.classes,
            info.make_mapper(),
            size_divisibility=info.size_divisibility,
            score_threshold=score_threshold,
            batch_size=batch_size,
        )

    @abstractmethod
    def run(self, images: Tensor, image_sizes: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Inputs to outputs of the graph."""

    def _infer(self, inputs: list[ModelInput]) -> list[tuple[Instances, np.ndarray]]:
        images, sizes = collate(inputs)
        boxes, scores, labels, salience = self.run(images, sizes)
        heat = salience_maps(salience, inputs, self.size_divisibility)
        results = []
        for i, x in enumerate(inputs):
            is_detection = scores[i] > 0
            (height, width), (rows, columns) = (x["height"], x["width"]), sizes[i].tolist()
            scale = torch.tensor([width / columns, height / rows]).repeat(2)
            instances = Instances(
                (height, width),
                pred_boxes=Boxes(boxes[i][is_detection] * scale),
                scores=scores[i][is_detection],
                pred_classes=labels[i][is_detection],
            )
            results.append((instances, heat[i]))
        return results


def collate(inputs: list[ModelInput]) -> tuple[Tensor, Tensor]:
    """(B, 3, H, W) float32 images, each at the upper left, and their (B, 2) (height, width)."""
    sizes = torch.tensor([x["image"].shape[1:] for x in inputs])
    height, width = sizes.amax(0).tolist()
    images = torch.zeros(len(inputs), 3, height, width)
    for padded, x in zip(images, inputs, strict=True):
        image = x["image"]
        padded[:, : image.shape[1], : image.shape[2]] = image
    return images, sizes


class OnnxDetector(ExportedDetector):
    """Runs an ONNX file that tools/export.py has made, on ONNX Runtime.

    Args:
        path: of the file.
        device: "cpu", "cuda", "cuda:N", or "auto": a GPU if ONNX Runtime can use one.
        threads: that one operator uses; 0 leaves it to ONNX Runtime.
        score_threshold: detections below it are left out.
        batch_size: images that are computed together, at most.

    Raises:
        ExportError: the file is missing, not ONNX, or not a model of this project; ONNX Runtime is not installed or
            lacks the device.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        device: str = "auto",
        threads: int = 0,
        score_threshold: float = 0.0,
        batch_size: int = 8,
    ) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise ExportError(
                "ONNX files need onnxruntime: pip install 'salience_detr[onnx]'"
            ) from error
        if not Path(path).is_file():
            raise ExportError(f"there is no file {path}")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3  # its warnings are about nodes that it removes
        providers = choose_providers(str(device), onnxruntime.get_available_providers())
        try:
            self.session = onnxruntime.InferenceSession(str(path), options, providers=providers)
        except Exception as error:  # its own kinds have no common base
            reason = " ".join(str(error).split())[:200]
            raise ExportError(f"{path} is not an ONNX file that can be run: {reason}") from error
        check_names(self.session, str(path))
        info = DetectorInfo.from_json(
            self.session.get_modelmeta().custom_metadata_map.get(METADATA_KEY), str(path)
        )
        super().__init__(info, score_threshold=score_threshold, batch_size=batch_size)

    def run(self, images: Tensor, image_sizes: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        feed = dict(zip(INPUTS, (images.numpy(), image_sizes.numpy()), strict=True))
        boxes, scores, labels, salience = (
            torch.from_numpy(x) for x in self.session.run(list(OUTPUTS), feed)
        )
        return boxes, scores, labels, salience


def choose_providers(device: str, available: list[str]) -> list[Any]:
    """ONNX Runtime's names for a device, with its number, the CPU behind the others.

    Raises:
        ExportError: this build of ONNX Runtime lacks it.
    """
    cpu, cuda = "CPUExecutionProvider", "CUDAExecutionProvider"
    kind, _, number = device.partition(":")
    if kind not in ("auto", "cpu", "cuda") or not (number or "0").isdigit():
        raise ExportError(
            f"the device {device!r} is unknown to ONNX Runtime; use auto, cpu or cuda"
        )
    if kind == "cuda" and cuda not in available:
        raise ExportError(
            f"this ONNX Runtime has no CUDA, only {', '.join(available)}; install onnxruntime-gpu"
        )
    if kind == "cpu" or cuda not in available:
        return [cpu]
    current = (
        torch.cuda.current_device() if torch.cuda.is_available() else 0
    )  # of torchrun's process, for example
    return [(cuda, {"device_id": int(number or current)}), cpu]


def check_names(session: Any, path: str) -> None:
    """Raise ExportError if a graph has other inputs or outputs."""
    inputs, outputs = (
        [x.name for x in session.get_inputs()],
        [x.name for x in session.get_outputs()],
    )
    if set(inputs) != set(INPUTS) or not set(OUTPUTS) <= set(outputs):
        raise ExportError(
            f"{path} is not a model of this project: its inputs are {', '.join(inputs)} and its outputs "
            f"{', '.join(outputs[:6])}; export one with tools/export.py"
        )


class PackagedDetector(ExportedDetector):
    """Runs a .pt2 file that tools/export.py has made: a program of torch.export, or a package that was compiled ahead.

    A compiled package runs on the kind of device and processor that it was made on.

    Args:
        path: of the file.
        score_threshold: detections below it are left out.
        batch_size: images that are computed together, at most.

    Raises:
        ExportError: the file is missing, broken, or not a model of this project.
    """

    def __init__(
        self, path: str | Path, *, score_threshold: float = 0.0, batch_size: int = 8
    ) -> None:
        if not zipfile.is_zipfile(path):
            raise ExportError(f"{path} is not a .pt2 file, or it is truncated or missing")
        with zipfile.ZipFile(path) as archive:
            is_compiled = any("aotinductor" in name for name in archive.namelist())
        try:
            self.graph, text = (load_package if is_compiled else load_program)(str(path))
        except ExportError:
            raise
        except Exception as error:  # a damaged file can fail in any way
            raise ExportError(
                f"{path} cannot be loaded: {' '.join(str(error).split())[:200]}"
            ) from error
        info = DetectorInfo.from_json(text, str(path))
        super().__init__(info, score_threshold=score_threshold, batch_size=batch_size)

    @torch.inference_mode()
    def run(self, images: Tensor, image_sizes: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        boxes, scores, labels, salience = (x.cpu() for x in self.graph(images, image_sizes))
        return boxes, scores, labels, salience


def load_program(path: str) -> tuple[Callable[..., Any], str | None]:
    """The graph of a program of torch.export, and what it says of itself."""
    notes = {METADATA_KEY: ""}
    program = torch.export.load(path, extra_files=notes)
    return program.module(check_guards=False), notes[METADATA_KEY]


def load_package(path: str) -> tuple[Callable[..., Any], str | None]:
    """The compiled graph of a package of AOTInductor, and what it says of itself."""
    package = torch._inductor.aoti_load_package(path)
    return package, package.get_metadata().get(METADATA_KEY)
