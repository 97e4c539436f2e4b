"""Trained models outside of the framework: files of ONNX, OpenVINO and PyTorch."""

from salience_detr.export.detectors import (
    ExportedDetector,
    OnnxDetector,
    OpenVinoDetector,
    PackagedDetector,
)
from salience_detr.export.info import DetectorInfo, ExportError

__all__ = [
    "DetectorInfo",
    "ExportError",
    "ExportedDetector",
    "OnnxDetector",
    "OpenVinoDetector",
    "PackagedDetector",
]
