"""The deformable attention of exported graphs samples as the original does, whatever by."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from salience_detr.export import DetectorInfo, OnnxDetector
from salience_detr.export.attention import gather_samples
from salience_detr.export.graph import DetectionGraph
from salience_detr.export.onnx import export_onnx
from salience_detr.export.program import export_program
from salience_detr.export.verification import compare

pytestmark = pytest.mark.xdist_group("export")


def test_samples_are_interpolated_between_the_centers_of_pixels_with_zeros_outside():
    # One image of 2 x 2 pixels, one head, one channel: 1 2 / 3 4.
    value = torch.tensor([1.0, 2, 3, 4]).view(1, 4, 1, 1)
    points = torch.tensor([[0.25, 0.25], [0.5, 0.5], [0.0, 0.25], [1.0, 1.0], [9.0, -9.0]])
    samples = gather_samples(value, (2, 2), points.view(1, 5, 1, 1, 2))
    # A center; the mean of all; half of pixel 1; a quarter of pixel 4; far outside.
    assert samples.flatten().tolist() == [1.0, 2.5, 0.5, 1.0, 0.0]


@pytest.mark.parametrize("shape", [(1, 1), (1, 6), (7, 4)])
def test_samples_equal_those_of_grid_sample(shape):
    torch.manual_seed(0)
    value = torch.randn(2, shape[0] * shape[1], 3, 5)
    locations = torch.rand(2, 9, 3, 4, 2) * 2 - 0.5
    maps = value.permute(0, 2, 3, 1).flatten(0, 1).unflatten(2, shape)
    grid = (2 * locations - 1).transpose(1, 2).flatten(0, 1)
    expected = F.grid_sample(maps, grid, align_corners=False)  # (B * M, C, Q, P)
    expected = expected.view(2, 3, 5, 9, 4).permute(0, 3, 1, 4, 2)
    torch.testing.assert_close(gather_samples(value, shape, locations), expected)


@pytest.mark.parametrize("sampling", ["gather", "operator"])
@pytest.mark.parametrize("size", [(80, 110), (30, 25)])
def test_a_graph_by_another_operator_gives_what_one_by_grid_sample_gives(predictor, size, sampling):
    torch.manual_seed(2)
    images = torch.randint(0, 256, (2, 3, *size)).float()
    sizes = torch.tensor([[size[0], size[1]], [size[0] - 9, size[1] - 4]])
    with torch.no_grad():
        expected = DetectionGraph(predictor.model)(images, sizes)
        actual = DetectionGraph(predictor.model, sampling=sampling)(images, sizes)
    boxes, scores, labels, salience = actual
    torch.testing.assert_close(scores, expected[1], rtol=0, atol=1e-5)
    torch.testing.assert_close(boxes / max(size), expected[0] / max(size), rtol=0, atol=1e-5)
    assert torch.equal(labels, expected[2])
    torch.testing.assert_close(salience, expected[3], rtol=0, atol=1e-5)


@pytest.mark.slow
def test_an_onnx_file_by_gather_finds_the_same_without_grid_sample(predictor, tmp_path):
    onnx = pytest.importorskip("onnx")
    program = export_program(predictor, sampling="gather")
    export_onnx(program, tmp_path / "model.onnx", DetectorInfo.from_predictor(predictor))
    kinds = {node.op_type for node in onnx.load(tmp_path / "model.onnx").graph.node}
    assert "Gather" in kinds and "GridSample" not in kinds

    detector = OnnxDetector(tmp_path / "model.onnx", device="cpu")
    for size in ((64, 64), (50, 333), (1, 300)):
        image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
        found = compare(predictor(image), detector(image))
        assert found.detections == 120 and found.unmatched == 0 and found.score < 1e-5
