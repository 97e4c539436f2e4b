"""Fixtures of the demo's tests: the program, weights of a small model, and inputs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from salience_detr import Predictor
from salience_detr.cli import predict as demo_program
from salience_detr.inference.tiling import TiledDetector
from salience_detr.inference.video import VideoWriter
from tests.inference.fake_detector import RectangleDetector

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def demo():
    return demo_program


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "weights.safetensors"

    # Random weights that are the same in every run.
    torch.manual_seed(0)
    predictor = Predictor(ROOT / "tests" / "configs" / "micro.py", None, device="cpu")
    save_file(predictor.model.state_dict(), path)
    return path


@pytest.fixture
def images(surface_data, tmp_path):
    """Write two good images and one that is broken."""
    folder = tmp_path / "in"
    folder.mkdir()

    for i in (1, 2):
        (folder / f"{i}.jpg").write_bytes((surface_data / "val" / f"00000{i}.jpg").read_bytes())

    (folder / "broken.jpg").write_bytes(b"\xff\xd8 no image")
    return folder


@pytest.fixture
def video(tmp_path):
    path = tmp_path / "film.mp4"
    with VideoWriter(path, fps=7) as writer:
        for i in range(5):
            writer.write(np.full((48, 80, 3), 40 * i, np.uint8))
    return path


@pytest.fixture
def arguments(micro_config, weights, tmp_path):
    """Return the arguments that every run of the small model needs."""
    model = ["--config-file", micro_config, "--weights", str(weights)]
    return [*model, "--output", str(tmp_path / "out")]


@pytest.fixture
def call(demo, arguments):
    """Return a function that runs the demo on inputs, without a score threshold."""

    # Random weights give low scores: a threshold would leave out all detections.
    def run(*inputs, extra=()):
        options = ["--score-threshold", "0", *extra]
        return demo.main([*arguments, *options, "--input", *map(str, inputs)])

    return run


@pytest.fixture
def rectangles(demo, monkeypatch):
    """Replace the model by a detector of painted rectangles."""
    detector = RectangleDetector(batch_size=4)

    def build(args):
        detector.score_threshold = args.score_threshold
        return TiledDetector(detector, tile=args.tile) if args.tile else detector

    monkeypatch.setattr(demo, "build_detector", build)
    return detector
