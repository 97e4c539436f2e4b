"""Frames that are read ahead, and cameras that are faster than the work."""

from __future__ import annotations

import threading
import time

import cv2
import numpy as np
import pytest

from salience_detr.inference import video
from salience_detr.inference.video import LatestFrames, VideoReader, VideoWriter, read_ahead


def frames(count):
    return [np.full((2, 2, 3), i, np.uint8) for i in range(count)]


def numbers(iterable):
    return [int(frame[0, 0, 0]) for frame in iterable]


def test_frames_that_are_read_ahead_are_the_same():
    assert numbers(read_ahead(frames(20), 3)) == list(range(20))
    assert numbers(read_ahead([], 3)) == []


def test_no_more_frames_are_read_than_there_is_room_for():
    taken = []

    def source():
        for i, frame in enumerate(frames(100)):
            taken.append(i)
            yield frame

    ahead = read_ahead(source(), 3)
    next(ahead)
    time.sleep(0.2)

    assert len(taken) <= 1 + 3 + 1  # handed out, waiting, and in the thread

    ahead.close()
    assert not any(thread.name.startswith("read_ahead") for thread in threading.enumerate())


def test_an_error_of_the_thread_is_raised_where_frames_are_taken():
    def source():
        yield from frames(2)
        raise cv2.error("broken")

    ahead = read_ahead(source(), 3)
    assert numbers([next(ahead), next(ahead)]) == [0, 1]

    with pytest.raises(cv2.error, match="broken"):
        next(ahead)


class FakeCamera:
    """cv2.VideoCapture of a camera that breaks after ``count`` frames.

    There is a frame every ``pause`` seconds, and none while ``answers`` is not set.
    """

    count = 30
    pause = 0.01
    answers = threading.Event()
    answers.set()
    fps = 100.0
    released = 0

    def __init__(self, source):
        self.given = 0

    def isOpened(self):
        return True

    def get(self, key):
        return {
            cv2.CAP_PROP_FPS: self.fps,
            cv2.CAP_PROP_FRAME_WIDTH: 8,
            cv2.CAP_PROP_FRAME_HEIGHT: 6,
        }.get(key, 0)

    def read(self):
        time.sleep(self.pause)
        self.answers.wait()
        if self.given == self.count:
            return False, None
        self.given += 1
        return True, np.full((6, 8, 3), self.given - 1, np.uint8)

    def release(self):
        FakeCamera.released += 1


@pytest.fixture
def camera(monkeypatch):
    monkeypatch.setattr(video.cv2, "VideoCapture", FakeCamera)
    monkeypatch.setattr(FakeCamera, "released", 0)
    return LatestFrames(VideoReader(0))


def test_frames_of_a_camera_are_dropped_to_keep_up(camera):
    seen = []
    for place, frame in camera:
        seen.append((place, int(frame[0, 0, 0])))
        time.sleep(0.1)  # ten frames of the camera

    places, shown = zip(*seen, strict=True)
    assert len(seen) < 12
    assert list(places) == sorted(set(places)) and list(shown) == sorted(set(shown))
    assert shown[-1] == 29  # the newest there is
    assert places[-1] >= 20  # the time that passed, in frames
    assert FakeCamera.released == 1


def test_leaving_the_iterator_releases_the_camera(camera):
    for _ in camera:
        break
    assert FakeCamera.released == 1 and not camera.thread.is_alive()


def test_a_camera_that_hangs_does_not_hang_the_program(camera, monkeypatch):
    monkeypatch.setattr(LatestFrames, "PATIENCE", 0.05)
    answers = threading.Event()
    monkeypatch.setattr(FakeCamera, "answers", answers)
    camera.thread.start()

    # It answers at last, so that a program that waits for it fails here instead of hanging.
    at_last = threading.Timer(10, answers.set)
    at_last.start()
    camera.close()

    # A read is under way, and releasing the camera would cut it off.
    assert camera.thread.is_alive() and FakeCamera.released == 0
    at_last.cancel()
    answers.set()
    camera.thread.join()


def test_an_impossible_rate_becomes_one_that_can_be_written(monkeypatch):
    monkeypatch.setattr(video.cv2, "VideoCapture", FakeCamera)
    # 90000 is the clock's rate, and a nan comes from a header without a rate.
    for said, expected in ((90000.0, 25), (0.0, 25), (float("nan"), 25), (29.97, 29.97)):
        monkeypatch.setattr(FakeCamera, "fps", said)
        assert VideoReader(0).fps == expected


def test_a_video_that_breaks_off_gives_the_frames_before(tmp_path):
    with VideoWriter(tmp_path / "a.avi", fps=10) as writer:
        for i in range(50):
            writer.write(np.random.default_rng(i).integers(0, 255, (48, 64, 3), np.uint8))

    # Half of the file is missing.
    content = (tmp_path / "a.avi").read_bytes()
    (tmp_path / "a.avi").write_bytes(content[: len(content) // 2])
    count = len(list(read_ahead(VideoReader(tmp_path / "a.avi"), 4)))

    assert 10 < count < 40


@pytest.mark.skipif(
    not hasattr(cv2, "CAP_PROP_PTS"), reason="OpenCV 4.11 tells when a video begins"
)
def test_the_beginning_of_a_matroska_file_is_no_part_of_its_duration(tmp_path):
    av = pytest.importorskip("av")
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width = stream.height = 64
        for i in range(20):
            frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), i, np.uint8), format="rgb24")
            frame.pts = 125 + i
            container.mux(stream.encode(frame))
        container.mux(stream.encode())

    reader = VideoReader(tmp_path / "a.mkv")
    assert len(list(reader.placed())) == 20
    assert reader.timeline.duration == pytest.approx(0.8, abs=0.05)
    assert reader.timeline.reaches(0.9)
