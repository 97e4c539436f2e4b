"""A detector from a file of weights: a checkpoint with its config, or an exported model, which needs none."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from salience_detr.config import ConfigError
from salience_detr.export import OnnxDetector, PackagedDetector
from salience_detr.predictor import Detector, Predictor

EXPORTED = (".onnx", ".pt2")


def is_exported(weights: str | Path) -> bool:
    """Whether a file is an exported model, by the end of its name."""
    return Path(weights).suffix.lower() in EXPORTED


def load_detector(
    config: str | Path | None,
    weights: str | Path,
    *,
    device: str = "auto",
    dtype: str = "float32",
    score_threshold: float = 0.0,
    batch_size: int = 8,
    overrides: Sequence[str] = (),
) -> Detector:
    """A Predictor; or what runs an exported model, where the weights end in .onnx or .pt2.

    Args:
        config: the LazyConfig file that a checkpoint was trained with; None for an exported model.
        weights: a checkpoint, or a file of tools/export.py.
        device: "cpu", "cuda", ... or "auto": a GPU if there is one. A .pt2 file runs where it was exported for.
        dtype: that a checkpoint's model computes in, see :class:`salience_detr.Predictor`.
        score_threshold: detections below it are left out.
        batch_size: images that are computed together, at most.
        overrides: ``key=value`` changes of the config.

    Raises:
        ConfigError: a checkpoint without a config; or a setting that an exported model cannot follow.
        CheckpointError, ExportError: the weights cannot be used.
        ValueError: a threshold or a batch size that cannot be.
    """
    if is_exported(weights):
        check_nothing_to_change(config, weights, dtype=dtype, overrides=overrides)
        if Path(weights).suffix.lower() == ".onnx":
            return OnnxDetector(
                weights, device=device, score_threshold=score_threshold, batch_size=batch_size
            )
        if device not in ("auto", "cpu"):
            raise ConfigError(
                f"{weights} runs on the device that it was exported for, not on {device}; use auto"
            )
        return PackagedDetector(weights, score_threshold=score_threshold, batch_size=batch_size)
    if config is None:
        raise ConfigError(
            f"the checkpoint {weights} needs the config that it was trained with (--config-file); "
            f"only exported models, {' and '.join(EXPORTED)}, do without"
        )
    return Predictor(
        config,
        weights,
        device=device,
        dtype=dtype,
        score_threshold=score_threshold,
        batch_size=batch_size,
        overrides=overrides,
    )


def check_nothing_to_change(
    config: str | Path | None, weights: str | Path, *, dtype: str, overrides: Sequence[str]
) -> None:
    """Raise ConfigError where an exported model is given what only the export could have followed."""
    if config is not None or overrides:
        found = f"the override {overrides[0]!r}" if config is None else f"the config {config}"
        raise ConfigError(
            f"{weights} is an exported model, which is as it is: leave out {found}, or export it again"
        )
    if dtype != "float32":
        raise ConfigError(
            f"{weights} computes in what it was exported in, not in {dtype}; leave the dtype out"
        )
