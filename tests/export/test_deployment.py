"""The examples of docs/deployment.md, run as written, find what the detectors here find."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from salience_detr.export import DetectorInfo, OnnxDetector
from salience_detr.export.openvino import write_openvino

pytestmark = pytest.mark.xdist_group("export")

GUIDE = Path(__file__).resolve().parents[2] / "docs" / "deployment.md"


@pytest.fixture
def folder(exported, tmp_path, monkeypatch):
    """A folder with model.onnx and image.jpg, which is the current one."""
    shutil.copy(exported / "model.onnx", tmp_path)
    pixels = np.random.default_rng(3).integers(0, 256, (210, 123, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.jpg")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("package", ["onnxruntime", "openvino"])
def test_an_example_without_this_package_finds_the_same(folder, exported, predictor, package):
    pytest.importorskip(package)
    if package == "openvino":
        import onnx

        info = DetectorInfo.from_predictor(predictor)
        write_openvino(onnx.load("model.onnx"), folder / "model.xml", info)

    blocks = re.findall(r"^```python\n(.*?)^```$", GUIDE.read_text(), re.DOTALL | re.MULTILINE)
    (code,) = [block for block in blocks if f"import {package}" in block]
    assert len([line for line in code.splitlines() if line]) <= 25
    assert "salience_detr import" not in code and ">= 0.5" in code

    # Random weights give low scores.
    names = {}
    exec(compile(code.replace(">= 0.5", "> 0"), "example", "exec"), names)
    expected = OnnxDetector("model.onnx", device="cpu")("image.jpg")
    np.testing.assert_allclose(names["boxes"], expected.pred_boxes.tensor, atol=0.01)
    scores = names["scores"].reshape(-1)[names["found"]]
    np.testing.assert_allclose(scores, expected.scores, atol=1e-5)
