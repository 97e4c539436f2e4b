"""Videos in H.264, by whatever can write it, and in other codecs elsewhere."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from salience_detr.inference import encoders, video
from salience_detr.inference.encoders import FFmpegEncoder, PyAVEncoder, VideoError
from salience_detr.inference.video import VideoReader, VideoWriter


def write(path, *, size=(64, 48), count=6, **options):
    with VideoWriter(path, fps=7, **options) as writer:
        for i in range(count):
            writer.write(np.full((size[1], size[0], 3), 40 * i, np.uint8))
    return writer.codec


def stored_codec(path):
    av = pytest.importorskip("av")
    with av.open(str(path)) as container:
        return container.streams.video[0].codec_context.name


@pytest.fixture
def no_h264(monkeypatch):
    monkeypatch.setattr(encoders, "h264_encoders", lambda: iter(()))


@pytest.mark.parametrize("encoder", [PyAVEncoder, FFmpegEncoder])
def test_h264_has_the_rate_size_and_frames_it_was_given(tmp_path, monkeypatch, encoder):
    if encoder is PyAVEncoder:
        pytest.importorskip("av")
    elif encoders.find_ffmpeg() is None:
        pytest.skip("needs the program ffmpeg with x264 (or pip install imageio-ffmpeg)")
    monkeypatch.setattr(encoders, "h264_encoders", lambda: iter([encoder]))

    path = tmp_path / "ä b.mp4"
    assert write(path) == "H.264" and stored_codec(path) == "h264"
    reader = VideoReader(path)
    means = [frame.mean() for frame in reader]
    assert reader.fps == 7 and reader.size == (64, 48)
    assert means == pytest.approx([0, 40, 80, 120, 160, 200], abs=3)


@pytest.mark.parametrize(
    ("name", "size", "codec"),
    [
        ("a.mp4", (64, 48), "MPEG-4"),
        ("a.avi", (64, 48), "MPEG-4"),
        ("a.avi", (63, 47), "Motion JPEG"),
    ],
)
def test_without_h264_another_codec_is_written_and_named(tmp_path, no_h264, name, size, codec):
    assert write(tmp_path / name, size=size) == codec
    frames = list(VideoReader(tmp_path / name))
    assert len(frames) == 6 and frames[0].shape == (size[1], size[0], 3)


def test_an_encoder_that_fails_to_open_gives_way_to_the_next(tmp_path, monkeypatch):
    def refuse(path, **options):
        raise ValueError("no such size")

    monkeypatch.setattr(encoders, "h264_encoders", lambda: iter([refuse]))
    assert write(tmp_path / "a.mp4") == "MPEG-4"


def test_a_folder_that_is_not_there_is_an_error(tmp_path):
    pytest.importorskip("av")
    with pytest.raises(OSError, match="No such file"):
        write(tmp_path / "none" / "a.mp4")


def test_a_file_that_cannot_be_read_back_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(video, "is_readable", lambda path: False)
    with pytest.raises(VideoError, match=r"a\.mp4 was written as .* but cannot be read"):
        write(tmp_path / "a.mp4")


def test_frames_of_another_size_are_resized_to_that_of_the_first(tmp_path):
    with VideoWriter(tmp_path / "a.mp4", fps=5) as writer:
        for size in (64, 32, 128):
            writer.write(np.full((size, size, 3), 200, np.uint8))
    assert [frame.shape for frame in VideoReader(tmp_path / "a.mp4")] == [(64, 64, 3)] * 3


def test_a_machine_without_any_encoder_of_h264_has_none(monkeypatch):
    monkeypatch.setattr(encoders, "opencv_has_h264", lambda: False)
    monkeypatch.setattr(encoders, "find_ffmpeg", lambda: None)
    monkeypatch.setattr(encoders.importlib.util, "find_spec", lambda name: None)
    assert list(encoders.h264_encoders()) == []


def test_ffmpeg_that_fails_says_why(tmp_path, monkeypatch):
    program = tmp_path / "ffmpeg"
    program.write_text(f"#!{sys.executable}\nimport sys\nsys.exit('no room')\n")
    program.chmod(0o755)
    monkeypatch.setattr(encoders, "find_ffmpeg", lambda: str(program))

    encoder = FFmpegEncoder(Path("a.mp4"), fps=5, size=(64, 64))
    with pytest.raises(VideoError, match=r"cannot write the video a\.mp4: no room"):
        for _ in range(100):
            encoder.write(np.zeros((64, 64, 3), np.uint8))
        encoder.close()
