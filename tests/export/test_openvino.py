"""Models in OpenVINO's format find what the model finds; their metadata need no OpenVINO."""

from __future__ import annotations

import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from salience_detr.checkpoint import ScoreThresholds
from salience_detr.cli import export
from salience_detr.export import DetectorInfo, ExportError, OpenVinoDetector
from salience_detr.export.detectors import choose_openvino_device
from salience_detr.export.onnx import DEFAULT_OPSET, build_onnx
from salience_detr.export.openvino import write_openvino
from salience_detr.export.program import export_program
from salience_detr.export.thresholds import read_model_classes, write_thresholds
from salience_detr.export.verification import compare
from salience_detr.inference.loading import load_detector
from salience_detr.utils.processor import has_instructions

pytestmark = pytest.mark.xdist_group("export")

BEST = ScoreThresholds(
    {"scratch": 1, "pit": 0, "inclusion": 1, "crack": 1, "stain": 1, "dent": 1},
    overall=0.4,
    iou_threshold=0.5,
    source="val/annotations.json",
)


def new_image(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def openvino():
    return pytest.importorskip("openvino", reason="needs openvino")


@pytest.fixture(scope="module")
def model_path(openvino, exported, predictor, tmp_path_factory):
    """A folder with model.xml and model.bin."""
    import onnx

    path = tmp_path_factory.mktemp("openvino") / "model.xml"
    write_openvino(onnx.load(exported / "model.onnx"), path, DetectorInfo.from_predictor(predictor))
    assert sorted(x.name for x in path.parent.iterdir()) == ["model.bin", "model.xml"]
    return path


@pytest.fixture(scope="module")
def detector(model_path):
    return OpenVinoDetector(model_path)


@pytest.fixture
def copied(model_path, tmp_path):
    shutil.copy(model_path.with_suffix(".bin"), tmp_path)
    return Path(shutil.copy(model_path, tmp_path))


@pytest.mark.parametrize("size", [(64, 64), (50, 333), (1, 1), (1, 300)])
def test_an_image_of_any_size_has_the_same_detections(predictor, detector, size):
    image = new_image(*size)
    found = compare(predictor(image), detector(image))
    assert found.detections == 120 and found.unmatched == 0
    assert found.score < 1e-5 and found.box < 0.01


def test_a_batch_of_different_sizes_has_the_same_detections_and_salience(predictor, detector):
    # The first three are padded to one size, and computed together.
    sizes = [(60, 64), (64, 62), (62, 64), (100, 30)]
    images = [new_image(*size, seed) for seed, size in enumerate(sizes)]
    for expected, found in zip(predictor.stream(images), detector.stream(images), strict=True):
        difference = compare(expected.detections, found.detections)
        assert difference.unmatched == 0 and difference.score < 1e-5
        np.testing.assert_allclose(found.salience, expected.salience, atol=1e-4)


def test_several_threads_may_call_one_detector(detector):
    images = [new_image(40, 64, seed) for seed in range(4)]
    with ThreadPoolExecutor(4) as pool:
        for alone, found in zip(map(detector, images), pool.map(detector, images), strict=True):
            assert torch.equal(alone.scores, found.scores)


def test_float32_is_the_default_wherever_it_runs(openvino, detector):
    assert detector.compiled.get_property("INFERENCE_PRECISION_HINT") == openvino.Type.f32


def test_bfloat16_is_a_choice_where_the_processor_has_it(openvino, model_path):
    capabilities = openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    if "BF16" not in capabilities:
        with pytest.raises(ExportError, match="CPU does not compute in bfloat16"):
            OpenVinoDetector(model_path, dtype="bfloat16")
        return
    half = load_detector(None, model_path, dtype="bfloat16")
    assert half.compiled.get_property("INFERENCE_PRECISION_HINT") == openvino.Type.bf16


def test_thresholds_are_stored_in_the_xml(copied):
    write_thresholds(copied, BEST)
    best = load_detector(None, copied, score_threshold="best")
    found = best(new_image(64, 64))
    assert len(found) > 0 and set(found.pred_classes.tolist()) == {1}
    assert best.best_thresholds == BEST
    assert list(read_model_classes(copied).names) == best.class_names


def test_weights_that_are_missing_or_damaged_are_named(copied):
    weights = copied.with_suffix(".bin")
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ExportError, match=r"model\.xml cannot be run, or its \.bin is another's"):
        OpenVinoDetector(copied)
    weights.unlink()
    with pytest.raises(ExportError, match=r"needs .*model\.bin, which is missing; copy both"):
        OpenVinoDetector(copied)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is no file of OpenVINO, or it is damaged"),
        ("<annotation><size>", "is no file of OpenVINO, or it is damaged"),
        ("<annotation><size/></annotation>", "is not a model of this project"),
        ('<net><rt_info><salience_detr value="{"/></rt_info></net>', "holds broken metadata"),
    ],
)
def test_files_that_are_no_models_of_ours_are_one_line(openvino, tmp_path, content, message):
    path = tmp_path / "other.xml"
    path.write_text(content)
    for read in (OpenVinoDetector, read_model_classes):
        with pytest.raises(ExportError, match=message) as error:
            read(path)
        assert "other.xml" in str(error.value) and "\n" not in str(error.value)


def test_a_missing_file_and_an_unknown_dtype_are_described(detector, model_path):
    with pytest.raises(ExportError, match=r"there is no file missing\.xml"):
        OpenVinoDetector("missing.xml")
    with pytest.raises(ExportError, match="float64"):
        OpenVinoDetector(model_path, dtype="float64")


def test_devices_have_openvinos_names():
    assert choose_openvino_device("auto", ["CPU", "GPU.0", "GPU.1"]) == "CPU"
    assert choose_openvino_device("gpu.1", ["CPU", "GPU.0", "GPU.1"]) == "GPU.1"
    assert choose_openvino_device("gpu", ["CPU", "GPU.0", "GPU.1"]) == "GPU"
    with pytest.raises(ExportError, match="'cuda' is unknown to OpenVINO here; use auto, cpu"):
        choose_openvino_device("cuda", ["CPU"])


def test_without_the_package_one_line_names_it(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "openvino", None)
    remedy = r"need openvino: pip install 'salience_detr\[openvino\]'"
    with pytest.raises(ExportError, match=remedy):
        OpenVinoDetector(tmp_path / "model.xml")
    call = ["--config-file", "neu_det_r18", "--output", str(tmp_path / "model.xml")]
    assert export.main(call) == 2
    assert "pip install 'salience_detr[openvino]'" in capsys.readouterr().err


def test_the_tool_writes_and_verifies_an_xml(
    openvino, micro_config, exported, program, monkeypatch, tmp_path, surface_data, capsys
):
    import onnx

    model = onnx.load(exported / "model.onnx")
    monkeypatch.setattr(export, "export_program", lambda predictor, sampling: program)
    monkeypatch.setattr(export, "build_onnx", lambda program, info, **options: model)
    torch.manual_seed(1)  # the random weights of the session's model
    image = str(surface_data / "val" / "000002.jpg")
    call = ["--config-file", micro_config, "--output", str(tmp_path / "model.xml")]
    assert export.main([*call, "--verify", image]) == 0
    assert "OpenVinoDetector" in capsys.readouterr().out


@pytest.fixture(scope="module")
def operator_path(openvino, predictor, tmp_path_factory):
    """A folder with model.xml and model.bin, whose attention is this package's operator."""
    info = DetectorInfo.from_predictor(predictor)
    program = export_program(predictor, sampling="operator")
    path = tmp_path_factory.mktemp("operator") / "model.xml"
    write_openvino(build_onnx(program, info, opset=DEFAULT_OPSET, simplify=True), path, info)
    return path


def test_a_file_by_the_operator_has_no_grid_sample_and_the_same_detections(
    predictor, operator_path
):
    text = operator_path.read_text()
    assert text.count('type="DeformableAttention"') == len(predictor.model.encoder.layers) + len(
        predictor.model.decoder.layers
    )
    assert "GridSample" not in text

    detector = OpenVinoDetector(operator_path, threads=1)
    images = [new_image(*size) for size in ((64, 64), (50, 333), (1, 300), (62, 60))]
    for expected, found in zip(predictor.stream(images), detector.stream(images), strict=True):
        difference = compare(expected.detections, found.detections)
        assert difference.detections == 120 and difference.unmatched == 0
        assert difference.score < 1e-5 and difference.box < 0.01


def test_a_file_by_the_operator_runs_in_bfloat16_and_in_several_threads(predictor, operator_path):
    if not has_instructions(("avx512_bf16", "amx_bf16")):
        pytest.skip("the processor has no bfloat16")
    detector = OpenVinoDetector(operator_path, dtype="bfloat16")
    image = new_image(80, 110)
    (alone, *others) = [detector(image), *ThreadPoolExecutor(3).map(detector, [image] * 6)]
    assert len(alone) == len(predictor(image))
    for found in others:
        difference = compare(alone, found)
        assert difference.unmatched == 0 and difference.score < 1e-6


def test_the_operator_is_for_openvino_alone(capsys):
    with pytest.raises(SystemExit):
        export.main(["--weights", "neu_det_r18", "--output", "x.onnx", "--sampling", "operator"])
    assert "--sampling operator writes an .xml for OpenVinoDetector, not x.onnx" in (
        capsys.readouterr().err
    )


def test_without_the_compiled_operator_the_export_says_so(predictor, monkeypatch):
    monkeypatch.setattr("salience_detr.export.graph.is_compiled_for", lambda device: False)
    with pytest.raises(ExportError, match=r"needs the compiled operator; .*builds it"):
        export_program(predictor, sampling="operator")
