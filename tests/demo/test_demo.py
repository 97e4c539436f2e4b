"""The demo's command line on pictures, videos and broken files."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO
from safetensors.torch import save_file

from salience_detr import Predictor
from salience_detr.data import register_coco_dataset
from salience_detr.video import VideoReader, VideoWriter
from tools import evaluate_json

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def demo():
    spec = importlib.util.spec_from_file_location("demo", ROOT / "demo" / "demo.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["demo"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def weights(micro_config, tmp_path):
    path = tmp_path / "weights.safetensors"
    save_file(Predictor(micro_config, None, device="cpu").model.state_dict(), path)
    return path


@pytest.fixture
def pictures(surface_data, tmp_path):
    """Two good pictures and one that is broken."""
    folder = tmp_path / "in"
    folder.mkdir()
    for i in (1, 2):
        (folder / f"{i}.jpg").write_bytes((surface_data / "val" / f"00000{i}.jpg").read_bytes())
    (folder / "broken.jpg").write_bytes(b"\xff\xd8 no picture")
    return folder


@pytest.fixture
def video(tmp_path):
    path = tmp_path / "film.mp4"
    with VideoWriter(path, fps=7) as writer:
        for i in range(5):
            writer.write(np.full((48, 80, 3), 40 * i, np.uint8))
    return path


@pytest.fixture
def call(demo, micro_config, weights, tmp_path):
    def run(*inputs, extra=()):
        start = ["--config-file", micro_config, "--weights", str(weights), "--output", str(tmp_path / "out")]
        return demo.main([*start, "--score-threshold", "0", *extra, "--input", *map(str, inputs)])

    return run


def outputs(tmp_path):
    return sorted(path.name for path in (tmp_path / "out").iterdir())


def test_a_broken_picture_is_passed_over_and_listed(call, pictures, tmp_path, capsys):
    assert call(pictures) == 0
    assert outputs(tmp_path) == ["1.jpg", "2.jpg"]
    errors = capsys.readouterr().err
    assert "1 inputs were passed over" in errors and "broken.jpg" in errors


def test_only_broken_pictures_are_a_failure(call, pictures, capsys):
    assert call(pictures / "broken.jpg") == 1


def test_salience_and_json_are_written(call, pictures, tmp_path, micro_config, weights):
    json_file = tmp_path / "found.json"
    assert call(pictures / "*.jpg", extra=["--salience", "--json", str(json_file)]) == 0
    assert outputs(tmp_path) == ["1.jpg", "1_salience.jpg", "2.jpg", "2_salience.jpg"]
    coco = COCO(str(json_file))
    assert [image["file_name"] for image in coco.loadImgs(coco.getImgIds())] == [
        str(pictures / "1.jpg"), str(pictures / "2.jpg"),
    ]  # fmt: skip
    expected = Predictor(micro_config, weights, device="cpu")(pictures / "2.jpg")
    found = coco.loadAnns(coco.getAnnIds(imgIds=[2]))
    assert [x["score"] for x in found] == pytest.approx(expected.scores.tolist())
    assert [x["category_id"] for x in found] == [label + 1 for label in expected.pred_classes.tolist()]
    x0, y0, x1, y1 = expected.pred_boxes.tensor[0].tolist()
    assert found[0]["bbox"] == pytest.approx([x0, y0, x1 - x0, y1 - y0])


def test_the_threshold_leaves_out_what_is_below(call, pictures, tmp_path):
    json_file = tmp_path / "found.json"
    call(pictures / "1.jpg", extra=["--score-threshold", "0.99", "--json", str(json_file)])
    assert json.loads(json_file.read_text())["annotations"] == []


def test_a_video_keeps_rate_size_and_length(call, video, tmp_path):
    assert call(video, extra=["--salience"]) == 0
    for name in ("film.mp4", "film_salience.mp4"):
        reader = VideoReader(tmp_path / "out" / name)
        frames = list(reader)
        assert reader.fps == 7 and len(frames) == 5 and frames[0].shape == (48, 80, 3)


def test_pictures_and_videos_of_the_same_name_do_not_overwrite_each_other(call, pictures, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "1.jpg").write_bytes((pictures / "2.jpg").read_bytes())
    assert call(pictures / "1.jpg", other / "1.jpg") == 0
    assert outputs(tmp_path) == ["1.jpg", "1_2.jpg"]


def test_a_video_that_is_none_is_passed_over(call, pictures, tmp_path):
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    assert call(tmp_path / "bad.mp4", pictures / "1.jpg") == 0
    assert call(tmp_path / "bad.mp4") == 1


def test_an_interrupted_video_keeps_what_was_written(micro_config, weights, tmp_path):
    with VideoWriter(tmp_path / "long.mp4", fps=10) as writer:
        for i in range(2000):
            writer.write(np.full((48, 80, 3), i % 255, np.uint8))
    json_file, target = tmp_path / "found.json", tmp_path / "out" / "long.mp4"
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "demo" / "demo.py"), "--config-file", micro_config, "--weights", str(weights),
         "--input", str(tmp_path / "long.mp4"), "--output", str(tmp_path / "out"), "--json", str(json_file)],
        env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while not target.exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 130
    count = len(list(VideoReader(target)))
    assert 0 < count < 2000
    assert len(json.loads(json_file.read_text())["images"]) == count


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_what_is_being_written_when_a_signal_comes_is_also_recorded(call, video, tmp_path, monkeypatch, number):
    write = VideoWriter.write
    written = []

    def write_then_stop(writer, frame):
        write(writer, frame)
        written.append(writer)
        if len(written) == 5:  # the drawing of the third frame, its salience is to come
            signal.raise_signal(number)

    monkeypatch.setattr(VideoWriter, "write", write_then_stop)
    json_file = tmp_path / "found.json"
    # Under nohup, SIGHUP would be ignored.
    handlers = {stop: signal.signal(stop, signal.SIG_DFL) for stop in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        assert call(video, extra=["--salience", "--json", str(json_file)]) == 130
    finally:
        for stop, handler in handlers.items():
            signal.signal(stop, handler)
    for name in ("film.mp4", "film_salience.mp4"):
        assert len(list(VideoReader(tmp_path / "out" / name))) == 3
    found = json.loads(json_file.read_text())
    assert len(found["images"]) == 3 and {x["image_id"] for x in found["annotations"]} == {1, 2, 3}


@pytest.mark.parametrize("name", ["grey.png", "alpha.png", "deep.png"])
def test_unusual_pictures_are_read(call, tmp_path, name):
    grey = np.random.randint(0, 255, (40, 50), np.uint8)
    image = {"grey.png": grey, "alpha.png": np.dstack([grey] * 4), "deep.png": grey.astype(np.uint16) * 257}[name]
    cv2.imwrite(str(tmp_path / name), image)
    assert call(tmp_path / name) == 0


@pytest.mark.parametrize(
    ("inputs", "extra", "message"),
    [
        (["nowhere/*.jpg"], [], "nowhere/*.jpg: there is no such picture"),
        (["{picture}"], ["modle.num_classes=3"], "did you mean model.num_classes"),
        (["{picture}"], ["model.num_classes=3"], "6 classes, the model 3"),
        (["{picture}"], ["--output", "/dev/null/x"], "cannot be written to"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_two(
    demo, micro_config, weights, pictures, tmp_path, capsys, inputs, extra, message
):
    words = ["--config-file", micro_config, "--weights", str(weights), "--output", str(tmp_path / "out")]
    files = [x.format(picture=pictures / "1.jpg") for x in inputs]
    options, overrides = [x for x in extra if "=" not in x], [x for x in extra if "=" in x]
    assert demo.main([*words, *options, "--input", *files, *overrides]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(errors) == 1 and message in errors[0]


def test_the_inputs_are_never_written_over(call, pictures, video, tmp_path):
    (tmp_path / "out").mkdir()
    inputs = [tmp_path / "out" / "1.jpg", tmp_path / "out" / "1_salience.jpg", tmp_path / "out" / "film.mp4"]
    for path, source in zip(inputs, [pictures / "1.jpg", pictures / "2.jpg", video], strict=True):
        path.write_bytes(source.read_bytes())
    before = [path.read_bytes() for path in inputs]
    assert call(tmp_path / "out", extra=["--salience"]) == 0
    assert [path.read_bytes() for path in inputs] == before
    assert len(outputs(tmp_path)) == 9  # a drawing and a map for each


def test_a_missing_file_is_listed_and_the_others_are_done(call, pictures, tmp_path, capsys):
    assert call(pictures / "1.jpg", tmp_path / "none.jpg") == 0
    assert outputs(tmp_path) == ["1.jpg"]
    assert "none.jpg: there is no such picture" in capsys.readouterr().err


def test_very_thin_and_very_large_pictures_do_not_stop_the_others(call, pictures, tmp_path, capsys):
    Image.new("1", (2000, 1)).save(tmp_path / "thin.png")
    Image.new("1", (20000, 20000)).save(tmp_path / "bomb.png")
    assert call(tmp_path / "thin.png", tmp_path / "bomb.png", pictures / "1.jpg") == 0
    assert outputs(tmp_path) == ["1.jpg", "thin.png"]
    assert "bomb.png" in capsys.readouterr().err


def test_a_video_of_odd_size_keeps_it(call, tmp_path):
    with VideoWriter(tmp_path / "odd.avi", fps=5) as writer:
        for i in range(4):
            writer.write(np.full((41, 61, 3), 60 * i, np.uint8))
    assert call(tmp_path / "odd.avi") == 0
    reader = VideoReader(tmp_path / "out" / "odd.avi")
    assert reader.fps == 5 and [x.shape for x in reader] == [(41, 61, 3)] * 4


def test_a_json_file_that_cannot_be_written_is_said_before_the_work(call, pictures, tmp_path, capsys):
    assert call(pictures, extra=["--json", str(pictures)]) == 2
    assert "is a folder" in capsys.readouterr().err
    assert call(pictures, extra=["--json", "/dev/null/found.json"]) == 2
    assert "set --json" in capsys.readouterr().err


def test_detections_of_some_pictures_evaluate_on_these(call, surface_data, tmp_path, capsys):
    json_file = tmp_path / "found.json"
    call(surface_data / "val" / "000003.jpg", surface_data / "val" / "000005.jpg", extra=["--json", str(json_file)])
    _, results, images = evaluate_json.load(json_file, surface_data / "annotations" / "val.json")
    assert images == [3, 5] and {x["image_id"] for x in results} == {3, 5}
    content = json.loads(json_file.read_text())
    content["images"][0]["file_name"] = "elsewhere.jpg"
    json_file.write_text(json.dumps(content))
    assert evaluate_json.main([str(json_file), str(surface_data / "annotations" / "val.json")]) == 2
    assert "elsewhere.jpg is 0 times in the annotations" in capsys.readouterr().err


def test_own_classes_have_their_names_and_ids(demo, micro_config, weights, surface_data, tmp_path):
    content = json.loads((surface_data / "annotations" / "val.json").read_text())
    content["categories"] = [{"id": 11 + i, "name": f"my_{i}"} for i in range(6)]
    content["annotations"] = []
    (tmp_path / "own.json").write_text(json.dumps(content))
    register_coco_dataset("own_classes", tmp_path / "own.json", surface_data / "val")
    words = ["--config-file", micro_config, "--weights", str(weights), "--output", str(tmp_path / "out")]
    words += ["--score-threshold", "0", "--json", str(tmp_path / "found.json"), "--input"]
    words += [str(surface_data / "val" / "000001.jpg"), "dataloader.test.dataset.names=own_classes"]
    assert demo.main(words) == 0
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["categories"] == content["categories"]
    assert {x["category_id"] for x in found["annotations"]} <= set(range(11, 17))


@pytest.mark.parametrize("device", ["nonsense", "cuda:77"])
def test_a_device_that_is_not_there_is_one_line(call, pictures, capsys, device):
    assert call(pictures / "1.jpg", extra=["--device", device]) == 2
    assert f"error: the device '{device}' cannot be used" in capsys.readouterr().err
