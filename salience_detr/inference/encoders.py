"""Encoders of videos: H.264, which browsers play, by PyAV, FFmpeg or OpenCV; others by OpenCV."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np

H264 = "H.264"
NAMES = {"avc1": H264, "mp4v": "MPEG-4", "XVID": "MPEG-4", "MJPG": "Motion JPEG"}

# Thin lines and labels stay sharp; a frame takes about as long as in OpenCV's MPEG-4.
X264_OPTIONS = {"preset": "veryfast", "crf": "20"}


MAX_H264_SIDE = 16384  # pixels

# Writes a video with OpenCV's encoder of H.264.
TRIAL = """
import cv2, numpy, sys
writer = cv2.VideoWriter(sys.argv[1], cv2.VideoWriter.fourcc(*"avc1"), 25, (64, 64))
for _ in range(3):
    writer.write(numpy.zeros((64, 64, 3), numpy.uint8))
writer.release()
"""


class VideoError(RuntimeError):
    """Error of a video that cannot be read or written."""


class Encoder(Protocol):
    """Encoder of frames of one size and rate into a file.

    Attributes:
        codec: name of the codec, as people know it.
    """

    codec: str

    def write(self, frame: np.ndarray) -> None:
        """Append an (H, W, 3) uint8 RGB frame."""

    def close(self) -> None:
        """Complete the file."""


class OpenCVEncoder:
    """Encoder of OpenCV.

    Args:
        path: the file.
        fourcc: four letters of the codec.
        fps: frames per second.
        size: (width, height).

    Raises:
        VideoError: OpenCV was built without the codec.
    """

    def __init__(self, path: Path, *, fourcc: str, fps: float, size: tuple[int, int]) -> None:
        self.codec = NAMES[fourcc]

        # FFmpeg would cut off the last row or column of odd sizes, which are Motion JPEG.
        backend = cv2.CAP_ANY
        if fourcc == "MJPG":
            backend = cv2.CAP_OPENCV_MJPEG

        # A codec that is missing shows only in the writer's state.
        code = cv2.VideoWriter.fourcc(*fourcc)
        self.writer = cv2.VideoWriter(str(path), backend, code, fps, size)
        if not self.writer.isOpened():
            raise VideoError(
                f"cannot write the video {path} with the codec {fourcc}; use an output .mp4 or .avi"
            )

    def write(self, frame: np.ndarray) -> None:
        self.writer.write(np.ascontiguousarray(frame[..., ::-1]))

    def close(self) -> None:
        self.writer.release()


class PyAVEncoder:
    """H.264 encoder of PyAV, whose wheels hold FFmpeg's libraries with x264."""

    codec = H264

    def __init__(self, path: Path, *, fps: float, size: tuple[int, int]) -> None:
        import av  # an optional package

        self.av = av
        self.container = av.open(str(path), "w", format="mp4", options={"movflags": "faststart"})
        rate = Fraction(fps).limit_denominator(1000)
        self.stream: Any = self.container.add_stream("libx264", rate=rate, options=X264_OPTIONS)
        self.stream.width, self.stream.height = size
        self.stream.pix_fmt = "yuv420p"

        # The file is there, or an error, before the first frame is encoded.
        self.container.start_encoding()

    def write(self, frame: np.ndarray) -> None:
        pixels = self.av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
        self.container.mux(self.stream.encode(pixels))

    def close(self) -> None:
        self.container.mux(self.stream.encode())
        self.container.close()


class FFmpegEncoder:
    """H.264 encoder of the program ffmpeg, which reads the frames from a pipe."""

    codec = H264

    def __init__(self, path: Path, *, fps: float, size: tuple[int, int]) -> None:
        program = find_ffmpeg()
        if program is None:
            raise VideoError("there is no program ffmpeg with x264")

        command = [program, "-y", "-loglevel", "error", "-f", "rawvideo", "-pix_fmt", "rgb24"]
        command += ["-s", f"{size[0]}x{size[1]}", "-r", str(fps), "-i", "pipe:0"]
        command += ["-c:v", "libx264", "-pix_fmt", "yuv420p", "-movflags", "+faststart"]
        for name, value in X264_OPTIONS.items():
            command += [f"-{name}", value]

        # Ctrl-C in a terminal reaches all processes of a session, and the file must be completed.
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115 - as long as the process
        self.process = subprocess.Popen(
            [*command, f"file:{path}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=self.errors,
            start_new_session=True,
        )
        self.path = path

    def write(self, frame: np.ndarray) -> None:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(np.ascontiguousarray(frame).data)
        except BrokenPipeError as error:
            raise VideoError(f"cannot write the video {self.path}: {self.read_error()}") from error

    def close(self) -> None:
        assert self.process.stdin is not None
        # The exit code tells as well that it has ended.
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        if self.process.wait() != 0:
            raise VideoError(f"cannot write the video {self.path}: {self.read_error()}")

    def read_error(self) -> str:
        """Return the last line that ffmpeg has written about its errors."""
        self.process.wait()
        self.errors.seek(0)
        lines = self.errors.read().decode(errors="replace").split("\n")
        return next((line for line in reversed(lines) if line.strip()), "ffmpeg has failed")


@functools.cache
def find_ffmpeg() -> str | None:
    """Return the path of a program ffmpeg that can encode H.264, the system's or imageio's."""
    candidates = [shutil.which("ffmpeg")]
    if importlib.util.find_spec("imageio_ffmpeg") is not None:
        import imageio_ffmpeg

        candidates.append(imageio_ffmpeg.get_ffmpeg_exe())

    for program in filter(None, candidates):
        listed = subprocess.run(
            [program, "-hide_banner", "-encoders"], capture_output=True, text=True, check=False
        )
        if "libx264" in listed.stdout:
            return program
    return None


def open_encoder(path: Path, *, fps: float, size: tuple[int, int], h264: bool = True) -> Encoder:
    """Open an encoder for a path and size: H.264 for .mp4 where there is one.

    Args:
        path: the file; its ending chooses the container.
        fps: frames per second.
        size: (width, height).
        h264: whether H.264 may be used.

    Raises:
        VideoError: no codec can be used.
        OSError: the file cannot be written.
    """
    if size[0] % 2 or size[1] % 2:
        return OpenCVEncoder(path, fourcc="MJPG", fps=fps, size=size)
    if path.suffix.lower() == ".avi":
        return OpenCVEncoder(path, fourcc="XVID", fps=fps, size=size)

    if h264 and max(size) <= MAX_H264_SIDE:
        for open_one in h264_encoders():
            # An encoder may refuse a size or a rate that another takes.
            try:
                return open_one(path, fps=fps, size=size)
            except OSError:
                raise
            except Exception:
                continue
    return OpenCVEncoder(path, fourcc="mp4v", fps=fps, size=size)


def h264_encoders() -> Iterator[Callable[..., Encoder]]:
    """Yield the encoders of H.264 that this machine has, the first one to try first."""
    if importlib.util.find_spec("av") is not None:
        yield PyAVEncoder
    if find_ffmpeg() is not None:
        yield FFmpegEncoder
    if opencv_has_h264():
        yield functools.partial(OpenCVEncoder, fourcc="avc1")


@functools.cache
def opencv_has_h264() -> bool:
    """Return whether OpenCV was built with an encoder of H.264; its wheels are not."""
    # In a process of its own: what its libraries print about a missing codec stays there.
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trial.mp4"
        command = [sys.executable, "-c", TRIAL, str(path)]
        subprocess.run(command, capture_output=True, check=False)
        return path.is_file() and is_readable(path)


def is_readable(path: Path) -> bool:
    """Return whether a video has a frame that can be decoded."""
    capture = cv2.VideoCapture(str(path))
    is_decoded, _ = capture.read()
    capture.release()
    return is_decoded
