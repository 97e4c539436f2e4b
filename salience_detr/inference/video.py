"""Reading and writing of videos and cameras, frame by frame, with OpenCV."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import cv2
import numpy as np

from salience_detr.data.decoding import opencv_silent
from salience_detr.inference.encoders import Encoder, VideoError, is_readable, open_encoder
from salience_detr.inference.timeline import Timeline, choose_rate

VIDEO_ENDINGS = {
    ".264", ".265", ".3g2", ".3gp", ".asf", ".avi", ".divx", ".dv", ".f4v", ".flv", ".h264",
    ".h265", ".hevc", ".ivf", ".m1v", ".m2t", ".m2ts", ".m2v", ".m4v", ".mjpeg", ".mjpg", ".mkv",
    ".mov", ".mp4", ".mpe", ".mpeg", ".mpg", ".mts", ".mxf", ".nut", ".ogm", ".ogv", ".qt", ".rm",
    ".rmvb", ".ts", ".vob", ".webm", ".wmv", ".y4m",
}  # fmt: skip

MATROSKA = {".mkv", ".webm"}
# OpenCV 4.11 has it: the place of a frame in units of the rate.
CAP_PROP_PTS = getattr(cv2, "CAP_PROP_PTS", -1)

NUM_TIMED = 300  # frames from which the rate of a video is found out

T = TypeVar("T")


def name_for_opencv(path: str | Path) -> str:
    """Return a path as text.

    Raises:
        VideoError: the name is not UTF-8. OpenCV would abort the process.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise VideoError(f"the name of the video {str(path)!r} is not UTF-8; rename it") from error
    return str(path)


@dataclass(frozen=True)
class VideoFrame:
    """A frame and where it belongs.

    Attributes:
        number: number of the frame, counted from 0.
        place: place of the frame in a video of constant rate.
        image: (H, W, 3) uint8 RGB.
    """

    number: int
    place: int
    image: np.ndarray


class VideoReader:
    """Reader of the frames of a video file (a path) or of a camera (a number).

    Attributes:
        fps: frames per second; 25 where the source has no usable rate. For a file of a variable
            rate, that of a video of constant rate with the same frames.
        timeline: places of the frames of a file in that video.
        num_frames: number of frames; None where the source does not have it.
        size: (width, height) of a frame.
    """

    def __init__(self, source: str | Path | int) -> None:
        self.num_frames: int | None = None
        if isinstance(source, int):
            name = f"camera {source}"
            if source < 0:  # OpenCV would take the process down
                raise VideoError(f"there is no {name}; cameras are numbered from 0")
            with opencv_silent():  # each of its backends would say that there is no camera
                self.capture = cv2.VideoCapture(source)
        else:
            name = f"the video {source}"
            self.capture = cv2.VideoCapture(name_for_opencv(source))
            count = int(self.capture.get(cv2.CAP_PROP_FRAME_COUNT))
            if count > 0:
                self.num_frames = count

        if not self.capture.isOpened():
            raise VideoError(f"cannot open {name}; it is missing or of an unknown kind")

        # Files with a variable rate may have that of the clock, 90000, which no codec can write.
        self.fps = self.capture.get(cv2.CAP_PROP_FPS)
        if not 0.1 <= self.fps <= 1000:
            self.fps = 25.0

        # The number of frames of many files is an estimate, from their duration and this rate.
        duration = None
        if self.num_frames is not None:
            duration = self.num_frames / self.fps
        if not isinstance(source, int):
            if duration is not None and Path(source).suffix.lower() in MATROSKA:
                duration -= min(lead_time(source, self.fps), duration)
            self.fps = choose_rate(first_times(source), self.fps)
        self.timeline = Timeline(self.fps, duration)

        width = int(self.capture.get(cv2.CAP_PROP_FRAME_WIDTH))
        height = int(self.capture.get(cv2.CAP_PROP_FRAME_HEIGHT))
        self.size = (width, height)

    def __iter__(self) -> Iterator[np.ndarray]:
        """Yield (H, W, 3) uint8 RGB frames, up to the last that can be decoded."""
        while True:
            decoded, frame = self.capture.read()
            if not decoded:
                return
            yield np.ascontiguousarray(frame[..., ::-1])  # OpenCV's frames are BGR

    def placed(self) -> Iterator[VideoFrame]:
        """Yield the frames of a file with their places, by the times in the file."""
        for number, image in enumerate(self):
            seconds = self.capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
            yield VideoFrame(number, self.timeline.place(seconds), image)

    def close(self) -> None:
        """Release the file or camera."""
        self.capture.release()


def first_times(source: str | Path) -> list[float]:
    """Return the times in seconds of the first frames of a video file."""
    capture = cv2.VideoCapture(name_for_opencv(source))
    times: list[float] = []
    while len(times) < NUM_TIMED and capture.grab():
        times.append(capture.get(cv2.CAP_PROP_POS_MSEC) / 1000)
    capture.release()
    return times


def lead_time(source: str | Path, fps: float) -> float:
    """Return the seconds before the first frame of a Matroska file, which its duration includes.

    A part that was cut out of a video without encoding it again begins so.
    """
    capture = cv2.VideoCapture(name_for_opencv(source))
    capture.grab()
    place = capture.get(CAP_PROP_PTS)
    capture.release()
    return max(0.0, place / fps)


def read_ahead(frames: Iterable[T], depth: int) -> Generator[T]:
    """Yield the same frames, which a thread reads at most ``depth`` frames ahead.

    An error in the thread is raised here. Closing the iterator ends the thread.
    """
    # One thread: a capture may not be read by two at a time, and the order stays.
    pool = ThreadPoolExecutor(1, thread_name_prefix="read_ahead")
    iterator = iter(frames)
    pending: deque[Future[T | None]] = deque()

    try:
        while True:
            while len(pending) < depth:
                pending.append(pool.submit(next, iterator, None))

            frame = pending.popleft().result()
            if frame is None:
                return
            yield frame
    finally:
        pool.shutdown(cancel_futures=True)


class LiveReader(Protocol):
    """Reader of a camera or stream, whose frames come at its own pace.

    Attributes:
        fps: frames per second.
    """

    fps: float

    def __iter__(self) -> Iterator[np.ndarray | None]:
        """Yield (H, W, 3) uint8 RGB frames, or None while there are none."""

    def close(self) -> None:
        """Release the camera or stream."""


class LatestFrames:
    """Iterator over the newest frames of a camera; older ones that were not taken are dropped.

    It ends when the camera has no more frames.
    """

    PATIENCE = 2.0  # seconds that close() waits for a camera that hangs

    def __init__(self, camera: LiveReader) -> None:
        self.camera = camera
        self.changed = threading.Condition()
        self.latest: tuple[float, np.ndarray] | None = None  # time and frame
        self.is_stopped = False
        self.has_ended = False
        self.thread = threading.Thread(target=self.watch, name="camera", daemon=True)

    def watch(self) -> None:
        """Store the newest frame, in the thread, until the camera ends or the iterator closes."""
        try:
            for frame in self.camera:
                if self.is_stopped:
                    return
                if frame is None:
                    continue
                with self.changed:
                    self.latest = (time.monotonic(), frame)
                    self.changed.notify()
        except cv2.error:
            pass  # some cameras fail this way when they have no more frames
        finally:
            with self.changed:
                self.has_ended = True
                self.changed.notify()

    def __iter__(self) -> Generator[tuple[int, np.ndarray]]:
        """Yield (H, W, 3) uint8 RGB frames with their places in a video of the camera's rate."""
        self.thread.start()
        begin = None
        place = -1

        try:
            while True:
                with self.changed:
                    self.changed.wait_for(lambda: self.latest is not None or self.has_ended)
                    if self.latest is None:
                        return
                    captured_at, frame = self.latest
                    self.latest = None

                # Places follow the clock, so that the video takes as long as the recording did.
                if begin is None:
                    begin = captured_at
                place = max(place + 1, round((captured_at - begin) * self.camera.fps))
                yield place, frame
        finally:
            self.close()

    def close(self) -> None:
        """End the thread and release the camera, unless it hangs."""
        self.is_stopped = True
        self.thread.join(self.PATIENCE)

        # Releasing a camera during a read may crash the process.
        if not self.thread.is_alive():
            self.camera.close()


def output_suffix(source: Path, size: tuple[int, int]) -> str:
    """Return the ending of the output video for a source with frames of (width, height).

    The ending of the source is kept if OpenCV can write it. Odd sizes need .avi.
    """
    if size[0] % 2 or size[1] % 2:
        return ".avi"
    return source.suffix if source.suffix.lower() in {".mp4", ".avi"} else ".mp4"


class VideoWriter:
    """Writer of frames of one size, as H.264 where that can be had. A closed video is playable.

    Args:
        path: the file, .mp4 or .avi.
        fps: frames per second.
        h264: whether H.264 may be used; the other codecs are OpenCV's.

    Attributes:
        codec: name of the codec; None before the first frame.
    """

    def __init__(self, path: Path, *, fps: float, h264: bool = True) -> None:
        self.path = path
        self.fps = fps
        self.h264 = h264
        self.encoder: Encoder | None = None
        self.size = (0, 0)
        self.codec: str | None = None

    def write(self, frame: np.ndarray) -> None:
        """Append an (H, W, 3) uint8 RGB frame; the first one sets the size.

        Raises:
            VideoError: no codec can be used, or the codec fails.
            OSError: the file cannot be written.
        """
        size = (frame.shape[1], frame.shape[0])
        if self.encoder is None:
            name_for_opencv(self.path)
            self.encoder = open_encoder(self.path, fps=self.fps, size=size, h264=self.h264)
            self.size = size
            self.codec = self.encoder.codec

        # A camera may change its size after it was lost.
        if size != self.size:
            frame = cv2.resize(np.ascontiguousarray(frame), self.size)
        self.encoder.write(frame)

    def close(self) -> None:
        """Complete the file.

        Raises:
            VideoError: it cannot be read.
        """
        if self.encoder is None:
            return

        encoder = self.encoder
        self.encoder = None
        encoder.close()
        if not is_readable(self.path):
            raise VideoError(
                f"the video {self.path} was written as {self.codec}, but cannot be read; is the "
                "disk full?"
            )

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
