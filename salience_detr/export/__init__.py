"""Trained models outside of the framework: ONNX files, and programs and packages of PyTorch."""

from salience_detr.export.detectors import ExportedDetector, OnnxDetector, PackagedDetector
from salience_detr.export.info import DetectorInfo, ExportError

__all__ = ["DetectorInfo", "ExportError", "ExportedDetector", "OnnxDetector", "PackagedDetector"]
