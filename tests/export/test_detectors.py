"""Exported models find what the model finds, for any number of images of any size."""

from __future__ import annotations

import copy
import json
import shutil

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from PIL import Image

from salience_detr import Predictor
from salience_detr.checkpoint import ScoreThresholds
from salience_detr.cli import predict as demo
from salience_detr.export import (
    DetectorInfo,
    ExportedDetector,
    ExportError,
    OnnxDetector,
    PackagedDetector,
)
from salience_detr.export.onnx import export_onnx
from salience_detr.export.program import export_program, save_program
from salience_detr.export.thresholds import read_model_classes, write_thresholds
from salience_detr.export.verification import compare

pytestmark = pytest.mark.xdist_group("export")


def new_image(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture(scope="module", params=["onnx", "pt2"])
def detector(exported, request):
    return {"onnx": OnnxDetector, "pt2": PackagedDetector}[request.param](
        exported / f"model.{request.param}"
    )


@pytest.mark.parametrize("size", [(64, 64), (50, 333), (400, 60), (1, 1), (1, 300)])
def test_an_image_of_any_size_has_the_same_detections(predictor, detector, size):
    image = new_image(*size)
    found = compare(predictor(image), detector(image))
    assert (
        found.detections == 120 and found.unmatched == 0 and found.score < 1e-5 and found.box < 0.01
    )


def test_a_batch_of_different_sizes_has_the_same_detections_and_salience(predictor, detector):
    images = [new_image(40, 64, 1), new_image(64, 30, 2), new_image(100, 100, 3)]
    for expected, found in zip(predictor.stream(images), detector.stream(images), strict=True):
        difference = compare(expected.detections, found.detections)
        assert difference.unmatched == 0 and difference.score < 1e-5
        np.testing.assert_allclose(found.salience, expected.salience, atol=1e-4)


def assert_inside(detections):
    height, width = detections.image_size
    boxes = detections.pred_boxes.tensor
    assert boxes.min() >= 0 and (boxes <= torch.tensor([width, height] * 2)).all()
    assert detections.pred_boxes.nonempty().all()


@pytest.mark.parametrize("size", [(64, 64), (50, 333), (37, 91), (1, 300), (1, 1)])
def test_no_box_reaches_out_of_the_image(predictor, detector, size):
    for found in (predictor(new_image(*size)), detector(new_image(*size))):
        assert len(found)
        assert_inside(found)


def test_boxes_without_area_and_of_score_0_are_left_out(predictor):
    class Fake(ExportedDetector):
        def run(self, images, image_sizes):
            boxes = torch.tensor([[[-1.0, 0, 9, 9], [5, 5, 5, 9], [1, 1, 3, 3]]])
            scores = torch.tensor([[0.9, 0.8, 0.0]])
            return boxes, scores, torch.zeros(1, 3, dtype=torch.int64), torch.zeros(1, 8, 8)

    found = Fake(DetectorInfo.from_predictor(predictor))(new_image(64, 64))
    assert found.scores.tolist() == pytest.approx([0.9])
    assert_inside(found)


def test_names_and_ids_of_the_classes_come_from_the_file(predictor, detector):
    assert detector.class_names == predictor.class_names
    found = detector(new_image(64, 64))
    assert found.to_coco(7)[0]["category_id"] == found.pred_classes[0] + 1
    assert found.draw().shape == (64, 64, 3)


def test_the_threshold_of_an_exported_model_holds(exported, predictor):
    scores = predictor(new_image(64, 64)).scores
    threshold = (scores[9] + scores[10]).item() / 2
    assert (
        len(OnnxDetector(exported / "model.onnx", score_threshold=threshold)(new_image(64, 64)))
        == 10
    )


def test_the_onnx_file_has_plain_operators_and_free_axes(exported):
    model = onnx.load(exported / "model.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert {x.domain for x in model.opset_import} == {""} and model.opset_import[0].version >= 17
    kinds = {node.op_type for node in model.graph.node}
    assert {"GridSample", "NonMaxSuppression"} <= kinds and not model.functions
    axes = {
        x.name: [d.dim_param or d.dim_value for d in x.type.tensor_type.shape.dim]
        for x in model.graph.input
    }
    assert axes == {"images": ["batch", 3, "height", "width"], "image_sizes": ["batch", 2]}


def test_onnx_runs_without_this_project_on_what_lies_beside_the_images(exported, predictor):
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(
        str(exported / "model.onnx"), providers=["CPUExecutionProvider"]
    )
    image = torch.from_numpy(new_image(33, 47)).permute(2, 0, 1)
    garbage = np.full((1, 3, 64, 60), 99, np.float32)  # the model pads to the same 64 x 64
    garbage[0, :, :33, :47] = image
    boxes, scores, labels, _ = session.run(
        None, {"images": garbage, "image_sizes": np.array([[33, 47]])}
    )
    with torch.no_grad():
        expected = predictor.model([{"image": image}])[0]["instances"]
    np.testing.assert_allclose(scores[0], expected.scores, atol=1e-5)
    np.testing.assert_allclose(boxes[0], expected.pred_boxes.tensor, atol=1e-2)
    assert (
        labels[0] == expected.pred_classes.numpy()
    ).mean() > 0.95  # but where two scores are nearly equal


def other_onnx(path):
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "other", [x], [y])
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path
    )


@pytest.mark.parametrize("kind", [OnnxDetector, PackagedDetector])
def test_files_that_are_no_models_of_ours_are_described(kind, tmp_path):
    other_onnx(tmp_path / "other.onnx")
    (tmp_path / "empty.onnx").write_bytes(b"")
    (tmp_path / "garbage.onnx").write_bytes(b"garbage" * 99)
    torch.save({"x": torch.zeros(1)}, tmp_path / "weights.pth")
    for name in ("other.onnx", "empty.onnx", "garbage.onnx", "weights.pth", "missing.onnx"):
        with pytest.raises(ExportError, match=name.replace(".", r"\.")):
            kind(tmp_path / name)


def test_an_onnx_file_without_our_entry_is_described(exported, tmp_path):
    model = onnx.load(exported / "model.onnx")
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "bare.onnx")
    with pytest.raises(ExportError, match="does not say what its classes are"):
        OnnxDetector(tmp_path / "bare.onnx")


def test_a_device_that_onnx_runtime_lacks_is_described(exported):
    with pytest.raises(ExportError, match="unknown to ONNX Runtime"):
        OnnxDetector(exported / "model.onnx", device="tpu")


def test_images_that_are_not_only_resized_cannot_be_exported(micro_config, surface_data):
    changed = Predictor(
        micro_config, None, device="cpu", overrides=["dataloader.test.mapper.augmentations=[]"]
    )
    with pytest.raises(ExportError, match="not one ResizeShortestEdge"):
        DetectorInfo.from_predictor(changed)


def test_an_old_opset_is_refused_before_the_work(predictor, tmp_path):
    with pytest.raises(ExportError, match="opset 16"):
        export_onnx(None, tmp_path / "x.onnx", DetectorInfo.from_predictor(predictor), opset=16)


@pytest.mark.slow
@pytest.mark.parametrize("option", ["nms_box_voting", "nms_soft"])
def test_exported_models_have_the_nms_of_the_predictor(predictor, tmp_path, option):
    published, predictor = predictor, copy.copy(predictor)
    predictor.model = copy.copy(predictor.model)
    predictor.model.nms_iou_threshold = 0.01
    setattr(predictor.model, option, True)

    info = DetectorInfo.from_predictor(predictor)
    program = export_program(predictor)
    export_onnx(program, tmp_path / "model.onnx", info, simplify=True)
    save_program(program, tmp_path / "model.pt2", info)
    detectors = [OnnxDetector(tmp_path / "model.onnx"), PackagedDetector(tmp_path / "model.pt2")]

    num_changed = 0
    for size in ((64, 64), (80, 110), (50, 333)):
        expected = predictor(new_image(*size))
        num_changed += expected.scores.sum() < published(new_image(*size)).scores.sum()
        for detector in detectors:
            found = compare(expected, detector(new_image(*size)))
            assert found.unmatched == 0 and found.score < 1e-5 and found.box < 0.01
    assert num_changed  # the queries of some image overlap


@pytest.mark.parametrize(
    "kind",
    [pytest.param("cpu", marks=pytest.mark.slow), pytest.param("gpu", marks=pytest.mark.gpu)],
)
def test_a_package_compiled_ahead_finds_the_same(predictor, tmp_path, request, kind):
    from salience_detr.export.program import compile_package

    device = torch.device("cpu") if kind == "cpu" else request.getfixturevalue("gpu")
    info = DetectorInfo.from_predictor(predictor)
    compile_package(export_program(predictor), tmp_path / "model.pt2", info, device=device)
    detector = PackagedDetector(tmp_path / "model.pt2")
    assert detector.device == device.type
    for size in ((64, 64), (50, 333), (1, 1)):
        assert compare(predictor(new_image(*size)), detector(new_image(*size))).unmatched == 0


def test_the_demo_takes_an_exported_model_without_a_config(exported, predictor, tmp_path):
    Image.fromarray(new_image(50, 70)).save(tmp_path / "a.png")
    call = [
        "--input",
        str(tmp_path / "a.png"),
        "--output",
        str(tmp_path / "out"),
        "--score-threshold",
        "0",
    ]
    call += ["--json", str(tmp_path / "found.json"), "--weights", str(exported / "model.onnx")]
    assert demo.main(call) == 0
    found = json.loads((tmp_path / "found.json").read_text())["annotations"]
    assert [x["score"] for x in found] == pytest.approx(
        predictor(new_image(50, 70)).scores.tolist(), abs=1e-5
    )
    assert demo.main([*call, "model.num_classes=3"]) == 2


BEST = ScoreThresholds(
    {"scratch": 1, "pit": 0, "inclusion": 1, "crack": 1, "stain": 1, "dent": 1},
    overall=0.4,
    iou_threshold=0.5,
    source="val/annotations.json",
)


@pytest.mark.parametrize(
    ("name", "detector"), [("model.onnx", OnnxDetector), ("model.pt2", PackagedDetector)]
)
def test_thresholds_are_stored_in_an_exported_model(exported, tmp_path, name, detector):
    path = shutil.copy(exported / name, tmp_path / name)
    write_thresholds(path, BEST)

    image = new_image(64, 64)
    best = detector(path, score_threshold="best")
    found = best(image)

    # Loading takes seconds: the same detector shows what it finds without thresholds.
    best.score_thresholds = best.class_thresholds(0)
    everything = best(image)
    is_pit = everything.pred_classes == 1
    assert 0 < len(found) < len(everything)
    assert torch.equal(found.scores, everything.scores[is_pit])
    assert best.best_thresholds == BEST
    assert list(read_model_classes(path).names) == best.class_names


def test_without_stored_thresholds_an_exported_model_has_no_best(exported):
    with pytest.raises(ValueError, match=r"model\.onnx holds no best score thresholds; store them"):
        OnnxDetector(exported / "model.onnx", score_threshold="best")
