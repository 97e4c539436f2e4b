"""tools/export.py."""

from __future__ import annotations

import pytest
from PIL import Image
from safetensors.torch import save_file

from salience_detr import Predictor
from salience_detr.cli import export
from salience_detr.data.images import read_image
from salience_detr.export import PackagedDetector

pytestmark = pytest.mark.xdist_group("export")


@pytest.fixture
def weights(predictor, tmp_path):
    save_file(predictor.model.state_dict(), tmp_path / "weights.safetensors")
    return str(tmp_path / "weights.safetensors")


@pytest.fixture
def call(micro_config, surface_data, weights, tmp_path, program, monkeypatch):
    monkeypatch.setattr(
        export, "export_program", lambda predictor, sampling: program
    )  # of the same weights

    def run(*extra, output="model.pt2"):
        return export.main(
            [
                "--config-file",
                micro_config,
                "--weights",
                weights,
                "--output",
                str(tmp_path / output),
                *extra,
            ]
        )

    return run


@pytest.mark.slow
def test_an_export_is_verified_on_the_test_set_and_timed(call, tmp_path, capsys):
    assert call("--verify") == 0
    out = capsys.readouterr().out
    assert (
        "images of the test set" in out
        and "0 detections differ" in out
        and "PackagedDetector" in out
    )
    assert PackagedDetector(tmp_path / "model.pt2").class_names[0] == "scratch"


def test_a_model_that_finds_something_else_fails_the_verification(
    call, micro_config, surface_data, tmp_path, monkeypatch, capsys
):
    (tmp_path / "model.pt2").write_bytes(b"of a model that finds less")
    less = Predictor(
        micro_config,
        tmp_path / "weights.safetensors",
        device="cpu",
        overrides=["model.max_detections=1"],
    )
    monkeypatch.setattr(export, "write", lambda predictor, args: less)
    assert call("--verify", str(surface_data / "val" / "000002.jpg")) == 1
    out = capsys.readouterr().out
    assert "the given images" in out and " 119 |" in out


def test_overrides_may_follow_the_images(tmp_path):
    start = ["--config-file", "F", "--output", "model.onnx"]
    args = export.parse_args([*start, "--verify", "a.jpg", "b=c.jpg", "model.num_classes=3"])
    assert args.verify == ["a.jpg"] and args.opts == ["b=c.jpg", "model.num_classes=3"]


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--verify", "missing.jpg"], "missing.jpg"),
        (["model.num_classes=3"], "weights.safetensors"),
        (["dataloader.test.mapper.augmentations=[]"], "ResizeShortestEdge"),
        (["model.num_qeries=3"], "num_qeries"),
    ],
)
def test_mistakes_are_one_line_and_leave_no_file(call, tmp_path, capsys, extra, message):
    assert call(*extra) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "model.pt2").exists()


@pytest.mark.parametrize(
    ("output", "extra"),
    [("model.pt", []), ("model.onnx", ["--compile"]), ("model.pt2", ["--device", "cuda"])],
)
def test_an_ending_that_does_not_fit_is_an_error_of_the_call(call, output, extra):
    with pytest.raises(SystemExit, match="2"):
        call(*extra, output=output)


def test_images_are_compared_in_several_shapes(tmp_path):
    Image.new("RGB", (60, 90)).save(tmp_path / "a.png")
    shapes = [x.shape[:2] for x in export.several_shapes([read_image(str(tmp_path / "a.png"))])]
    assert shapes == [(90, 60), (90, 30), (30, 60)]
