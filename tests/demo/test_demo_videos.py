"""The demo's command line on videos and cameras."""

from __future__ import annotations

import csv
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

from salience_detr.inference import video as video_module
from salience_detr.inference.video import VideoReader, VideoWriter
from tests.inference.fake_detector import paint
from tests.inference.test_live import Camera

ROOT = Path(__file__).resolve().parents[2]


def read_json(path):
    return json.loads(path.read_text())


def save_rgb(path, image):
    cv2.imwrite(str(path), image[..., ::-1])
    return path


def test_a_video_keeps_rate_size_and_length(call, video, tmp_path):
    assert call(video, extra=["--salience"]) == 0
    for name in ("film.mp4", "film_salience.mp4"):
        reader = VideoReader(tmp_path / "out" / name)
        frames = list(reader)
        assert reader.fps == 7 and len(frames) == 5 and frames[0].shape == (48, 80, 3)


def test_a_video_that_is_none_is_skipped(call, images, tmp_path):
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    assert call(tmp_path / "bad.mp4", images / "1.jpg") == 0
    assert call(tmp_path / "bad.mp4") == 1


def test_an_interrupted_video_keeps_its_written_frames(arguments, tmp_path):
    with VideoWriter(tmp_path / "long.mp4", fps=10) as writer:
        for i in range(2000):
            writer.write(np.full((48, 80, 3), i % 255, np.uint8))

    json_file = tmp_path / "results.json"
    target = tmp_path / "out" / "long.mp4"
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "demo" / "demo.py"), *arguments,
         "--input", str(tmp_path / "long.mp4"), "--json", str(json_file)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip

    # The first frame is written once the model is loaded.
    deadline = time.monotonic() + 60
    while not target.exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)

    # Some frames later, in the middle of the video.
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)

    assert process.wait(20) == 130

    count = len(list(VideoReader(target)))
    assert 0 < count < 2000
    assert len(json.loads(json_file.read_text())["images"]) == count


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_frame_that_a_signal_interrupts_is_completed_and_recorded(
    call, video, tmp_path, monkeypatch, number
):
    write = VideoWriter.write
    written = []

    def write_then_stop(writer, frame):
        write(writer, frame)
        written.append(writer)
        if len(written) == 5:  # the drawing of the third frame, its salience is to come
            signal.raise_signal(number)

    monkeypatch.setattr(VideoWriter, "write", write_then_stop)
    json_file = tmp_path / "results.json"
    # Under nohup, SIGHUP would be ignored.
    handlers = {
        stop: signal.signal(stop, signal.SIG_DFL)
        for stop in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    }

    try:
        assert call(video, extra=["--salience", "--json", str(json_file)]) == 130
    finally:
        for stop, handler in handlers.items():
            signal.signal(stop, handler)
    for name in ("film.mp4", "film_salience.mp4"):
        assert len(list(VideoReader(tmp_path / "out" / name))) == 3

    results = json.loads(json_file.read_text())
    assert len(results["images"]) == 3 and {x["image_id"] for x in results["annotations"]} == {
        1,
        2,
        3,
    }


def test_a_video_of_odd_size_keeps_it(call, tmp_path):
    with VideoWriter(tmp_path / "odd.avi", fps=5) as writer:
        for i in range(4):
            writer.write(np.full((41, 61, 3), 60 * i, np.uint8))

    assert call(tmp_path / "odd.avi") == 0

    reader = VideoReader(tmp_path / "out" / "odd.avi")
    assert reader.fps == 5 and [x.shape for x in reader] == [(41, 61, 3)] * 4


@pytest.fixture
def moving(tmp_path):
    """Write videos of a red square that moves, and of a blue one that stands, 9 frames each."""
    for name in ("a", "b"):
        with VideoWriter(tmp_path / f"{name}.avi", fps=10) as writer:
            for i in range(9):
                writer.write(
                    paint(64, 128, (5 + 8 * i, 20, 25 + 8 * i, 40, 0), (100, 44, 120, 60, 2))
                )

    return [tmp_path / "a.avi", tmp_path / "b.avi"]


def test_objects_of_a_video_keep_one_number(call, rectangles, moving, tmp_path):
    pytest.importorskip("trackers")
    file = tmp_path / "results.json"
    table = tmp_path / "results.csv"
    assert call(*moving, extra=["--track", "--json", str(file), "--csv", str(table)]) == 0

    results = read_json(file)
    assert [x["frame"] for x in results["images"]] == [*range(9), *range(9)]

    for category in (11, 13):
        numbers = [
            x.get("track_id") for x in results["annotations"] if x["category_id"] == category
        ]
        # There is no number in the first frame, and one number from then on.
        first, *others = numbers[:9]
        assert first is None and len(set(others)) == 1 and others[0] in (1, 2)
        assert numbers[9:] == numbers[:9]  # the second video begins anew

    assert [row["track_id"] for row in csv.DictReader(table.open())] == [
        str(x.get("track_id", "")) for x in results["annotations"]
    ]


def test_images_have_no_track_numbers(call, rectangles, tmp_path):
    pytest.importorskip("trackers")
    file = tmp_path / "results.json"
    image = save_rgb(tmp_path / "a.png", paint(50, 50, (10, 10, 30, 30, 0)))
    assert call(image, extra=["--track", "--json", str(file)]) == 0
    assert [set(x) & {"track_id"} for x in read_json(file)["annotations"]] == [set()]


def test_a_missing_tracker_is_one_line(call, images, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "trackers", None)
    assert call(images, extra=["--track"]) == 2
    assert "pip install 'salience_detr[track]'" in capsys.readouterr().err


def test_frames_are_computed_in_batches(call, rectangles, moving, tmp_path):
    assert call(moving[0]) == 0
    assert [len(batch) for batch in rectangles.batches] == [4, 4, 1]
    assert len(list(VideoReader(tmp_path / "out" / "a.avi"))) == 9


def test_a_video_that_breaks_off_is_noted(call, rectangles, tmp_path, capsys):
    with VideoWriter(tmp_path / "a.avi", fps=10) as writer:
        for i in range(60):
            writer.write(np.random.default_rng(i).integers(0, 255, (48, 64, 3), np.uint8))

    # Half of the file is missing.
    content = (tmp_path / "a.avi").read_bytes()
    (tmp_path / "a.avi").write_bytes(content[: len(content) // 2])
    assert call(tmp_path / "a.avi") == 0
    assert "a.avi breaks off: of " in capsys.readouterr().err


class FakeCamera:
    """cv2.VideoCapture of a camera that shows a red square, and then breaks or gets a signal."""

    stop = False

    def __init__(self, number):
        self.left = 40

    def isOpened(self):
        return True

    def get(self, key):
        return {
            cv2.CAP_PROP_FPS: 50.0,
            cv2.CAP_PROP_FRAME_WIDTH: 64,
            cv2.CAP_PROP_FRAME_HEIGHT: 48,
        }.get(key, 0)

    def read(self):
        time.sleep(0.005)
        self.left -= 1
        if self.left == 0 and self.stop:
            os.kill(os.getpid(), signal.SIGINT)
        return self.left > 0 or self.stop, paint(48, 64, (10, 10, 30, 30, 0))[..., ::-1].copy()

    def release(self):
        pass


@pytest.mark.parametrize("stop", [False, True])
def test_a_camera_is_watched_until_it_breaks_or_a_signal_comes(
    demo, rectangles, tmp_path, monkeypatch, capsys, stop
):
    monkeypatch.setattr(video_module.cv2, "VideoCapture", FakeCamera)
    monkeypatch.setattr(FakeCamera, "stop", stop)
    words = [
        "--config-file",
        "c",
        "--weights",
        "w",
        "--output",
        str(tmp_path / "out"),
        "--webcam",
        "3",
    ]

    assert demo.main([*words, "--json", str(tmp_path / "results.json"), "--salience"]) == (
        130 if stop else 0
    )

    errors = capsys.readouterr().err
    assert ("interrupted" in errors) == stop and ("camera 3 gives no more frames" in errors) != stop

    monkeypatch.undo()
    results = read_json(tmp_path / "results.json")
    assert 1 < len(results["images"]) <= 40 and len(results["annotations"]) == len(
        results["images"]
    )
    assert results["images"][0]["file_name"] == "webcam3.mp4"

    # The frames of a camera do not wait for a batch.
    assert [len(x) for x in rectangles.batches[:2]] == [1, 1]

    for name in ("webcam3.mp4", "webcam3_salience.mp4"):  # as long as it took
        assert len(list(VideoReader(tmp_path / "out" / name))) == results["images"][-1]["frame"] + 1


def test_a_camera_that_is_not_there_is_a_failure_in_one_line(demo, rectangles, tmp_path, capfd):
    words = ["--config-file", "c", "--weights", "w", "--webcam", "77"]
    assert demo.main([*words, "--output", str(tmp_path / "out")]) == 1
    errors = capfd.readouterr().err
    assert "cannot open camera 77" in errors and "VIDEOIO" not in errors


@pytest.mark.parametrize("name", ["a.mp4", "a.avi"])
def test_a_video_that_browsers_do_not_play_is_said(call, rectangles, tmp_path, capsys, name):
    with VideoWriter(tmp_path / name, fps=10, h264=False) as writer:
        for _ in range(3):
            writer.write(paint(48, 64, (10, 10, 30, 30, 0)))

    pytest.importorskip("av")
    assert call(tmp_path / name) == 0
    said = [line for line in capsys.readouterr().err.splitlines() if "browsers" in line]
    assert len(said) == (name == "a.avi")
    if said:
        assert "out/a.avi is MPEG-4, which browsers do not play" in said[0]
        assert "ffmpeg -i " in said[0] and said[0].endswith("a_h264.mp4")


def test_a_stream_is_watched_until_it_ends(demo, rectangles, tmp_path, capsys):
    server = Camera([12], pause=0.005)
    words = ["--config-file", "c", "--weights", "w", "--output", str(tmp_path / "out")]
    words += ["--stream-timeout", "0.3", "--json", str(tmp_path / "results.json")]
    address = server.address.replace("://", "://me:secret@")
    try:
        assert demo.main([*words, "--input", address]) == 0
    finally:
        server.shutdown()
        server.server_close()

    errors = capsys.readouterr().err
    assert "video has ended: no frame for 0.3 s, and " in errors and "secret" not in errors
    results = read_json(tmp_path / "results.json")
    assert 1 <= len(results["images"]) <= 12 and {x["bbox"][2] for x in results["annotations"]}
    assert results["images"][0]["file_name"] == "127_0_0_1_video.mp4"
    frames = list(VideoReader(tmp_path / "out" / "127_0_0_1_video.mp4"))
    assert len(frames) == results["images"][-1]["frame"] + 1


def test_a_stream_that_is_not_there_is_a_failure_of_one_line(demo, rectangles, tmp_path, capsys):
    words = ["--config-file", "c", "--weights", "w", "--output", str(tmp_path / "out")]
    assert demo.main([*words, "--input", "rtsp://127.0.0.1:1/live"]) == 1
    (line,) = [x for x in capsys.readouterr().err.splitlines() if "rtsp" in x]
    assert line.strip().startswith("cannot open the stream rtsp://127.0.0.1:1/live: 127.0.0.1, ")
