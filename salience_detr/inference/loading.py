"""Loading of a detector from a checkpoint and its config, or from an exported model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from salience_detr.checkpoint.score_thresholds import ScoreThreshold
from salience_detr.config import ConfigError
from salience_detr.detector import ModelDetector
from salience_detr.export import OnnxDetector, OpenVinoDetector, PackagedDetector
from salience_detr.predictor import Predictor

EXPORTED = (".onnx", ".pt2", ".xml")


def load_detector(
    config: str | Path | None,
    weights: str | Path,
    *,
    device: str = "auto",
    dtype: str = "float32",
    score_threshold: ScoreThreshold = 0.0,
    batch_size: int = 8,
    overrides: Sequence[str] = (),
    trust_config: bool = False,
    image_size: int | None = None,
    ignore_class_names: bool = False,
    optimize: str = "fused",
) -> ModelDetector:
    """Load a Predictor, or the detector of an exported model: an .onnx, .pt2 or .xml file.

    Args:
        config: the LazyConfig file of a checkpoint; None for the one that its weights name or that
            lies beside them, and for an exported model.
        weights: a checkpoint, or a file written by tools/export.py.
        device: "cpu", "cuda", ..., or "auto" for a GPU if there is one. A .pt2 file runs on the
            device that it was exported for.
        dtype: the dtype of a checkpoint's model, see :class:`salience_detr.Predictor`; an .xml file
            of OpenVINO takes float32 and bfloat16, the others compute in that of their export.
        score_threshold: detections with lower scores are left out; "best" takes the stored ones.
        batch_size: maximum number of images that are computed together.
        overrides: ``key=value`` changes of the config.
        trust_config: let a .yaml config call whatever it names.
        image_size: see :class:`salience_detr.Predictor`; an exported model has its own.
        ignore_class_names: see :class:`salience_detr.Predictor`; an exported model has its classes.
        optimize: see :class:`salience_detr.Predictor`; an exported model is fused.

    Raises:
        ConfigError: nothing tells the config of a checkpoint, or an exported model cannot follow a
            setting.
        CheckpointError, ExportError: the weights cannot be used.
        ValueError: the threshold or the batch size is out of range.
    """
    suffix = Path(weights).suffix.lower()
    settings: dict[str, Any] = {"score_threshold": score_threshold, "batch_size": batch_size}

    # The config builds the model of a checkpoint.
    if suffix not in EXPORTED:
        settings |= {"overrides": overrides, "trust_config": trust_config}
        settings |= {"ignore_class_names": ignore_class_names, "image_size": image_size}
        settings |= {"optimize": optimize}
        return Predictor(config, weights, device=device, dtype=dtype, **settings)

    # An exported model is fixed: refuse the settings that only its export could have followed.
    if config is not None or overrides:
        setting = f"the override {overrides[0]!r}" if config is None else f"the config {config}"
        raise ConfigError(
            f"{weights} is an exported model and cannot be changed: leave out {setting}, "
            "or export it again"
        )
    if image_size is not None:
        raise ConfigError(
            f"{weights} has the image size of its export: leave out --image-size {image_size}, or "
            "export it again with it"
        )
    if optimize != "fused":
        raise ConfigError(f"{weights} is compiled by its export or its runtime, not by --optimize")
    if suffix == ".xml":
        return OpenVinoDetector(weights, device=device, dtype=dtype, **settings)
    if dtype != "float32":
        raise ConfigError(f"{weights} computes in the dtype of its export, not in {dtype}")

    if suffix == ".onnx":
        return OnnxDetector(weights, device=device, **settings)
    if device not in ("auto", "cpu"):
        raise ConfigError(
            f"{weights} runs on the device that it was exported for, not on {device}; use auto"
        )
    return PackagedDetector(weights, **settings)
