"""Reading and writing video files frame by frame, with OpenCV; a thread reads frames ahead of the work on others."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Generator, Iterable, Iterator
from pathlib import Path
from types import TracebackType

import cv2
import numpy as np

VIDEO_ENDINGS = {".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg"}


class VideoError(RuntimeError):
    """A video that cannot be read or written."""


def name_for_opencv(path: str | Path) -> str:
    """A path as text.

    Raises:
        VideoError: its name is not UTF-8, which ends OpenCV's process.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise VideoError(f"the name of the video {str(path)!r} is not UTF-8; rename it") from error
    return str(path)


class VideoReader:
    """Frames of a video file (a path) or of a camera (a number).

    Attributes:
        fps: frames per second, 25 where the source does not say, or says what cannot be.
        num_frames: None where the source does not say.
        size: (width, height) of a frame.
    """

    def __init__(self, source: str | Path | int) -> None:
        self.capture = cv2.VideoCapture(
            source if isinstance(source, int) else name_for_opencv(source)
        )
        if not self.capture.isOpened():
            what = f"camera {source}" if isinstance(source, int) else f"the video {source}"
            raise VideoError(f"cannot open {what}; it is missing or of an unknown kind")
        fps = self.capture.get(cv2.CAP_PROP_FPS)
        # Files whose frames come at no fixed rate name their clock instead, 90000; no codec writes that.
        self.fps = fps if np.isfinite(fps) and 0.1 <= fps <= 1000 else 25.0
        self.size = tuple(
            int(self.capture.get(x)) for x in (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT)
        )
        count = int(self.capture.get(cv2.CAP_PROP_FRAME_COUNT))
        self.num_frames = count if count > 0 and not isinstance(source, int) else None

    def __iter__(self) -> Iterator[np.ndarray]:
        """(H, W, 3) uint8 RGB frames, up to the last that can be decoded."""
        while True:
            decoded, frame = self.capture.read()
            if not decoded:
                return
            yield np.ascontiguousarray(frame[..., ::-1])

    def close(self) -> None:
        self.capture.release()


def read_ahead(frames: Iterable[np.ndarray], depth: int) -> Generator[np.ndarray]:
    """The same frames, taken by a thread that is at most ``depth`` frames ahead, however long the video is.

    The thread has ended when the iterator is closed. An error of the thread is raised here, in its place.
    """
    waiting: queue.Queue[np.ndarray | BaseException | None] = queue.Queue(depth)
    stopped = threading.Event()

    def hand_over(item: np.ndarray | BaseException | None) -> None:
        while not stopped.is_set():
            try:
                return waiting.put(item, timeout=0.1)
            except queue.Full:
                continue

    def fill() -> None:
        try:
            for frame in frames:
                hand_over(frame)
                if stopped.is_set():
                    return
            hand_over(None)
        except BaseException as error:
            hand_over(error)

    thread = threading.Thread(target=fill, name="read_ahead", daemon=True)
    thread.start()
    try:
        while (item := waiting.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stopped.set()
        thread.join()


class LatestFrames:
    """The newest frame of a camera whenever the next one is asked for; those that came in between are dropped.

    Iterating ends when the camera gives no more frames.

    Attributes:
        dropped: how many frames were passed over.
    """

    PATIENCE = 2.0  # seconds that a camera which hangs is waited for at the end

    def __init__(self, camera: VideoReader) -> None:
        self.camera = camera
        self.dropped = 0
        self.changed = threading.Condition()
        self.latest: tuple[float, np.ndarray] | None = None
        self.is_stopped = self.has_ended = False
        self.thread = threading.Thread(target=self.watch, name="camera", daemon=True)

    def watch(self) -> None:
        """Keep the newest frame at hand, in the thread."""
        try:
            for frame in self.camera:
                with self.changed:
                    self.dropped += self.latest is not None
                    self.latest = (time.monotonic(), frame)
                    self.changed.notify()
                    if self.is_stopped:
                        return
        except cv2.error:
            pass  # as other cameras that break: no more frames
        finally:
            with self.changed:
                self.has_ended = True
                self.changed.notify()

    def __iter__(self) -> Generator[tuple[int, np.ndarray]]:
        """(H, W, 3) uint8 RGB frames, each with its place in a video of :attr:`VideoReader.fps`, counted from 0."""
        self.thread.start()
        first, place = None, -1
        try:
            while True:
                with self.changed:
                    self.changed.wait_for(lambda: self.latest is not None or self.has_ended)
                    if self.latest is None:
                        return
                    (taken, frame), self.latest = self.latest, None
                first = taken if first is None else first
                place = max(place + 1, round((taken - first) * self.camera.fps))
                yield place, frame
        finally:
            self.close()

    def close(self) -> None:
        """End the thread, and let go of the camera, unless it hangs."""
        self.is_stopped = True
        self.thread.join(self.PATIENCE)
        if not self.thread.is_alive():
            self.camera.close()


def output_ending(source: Path, size: tuple[int, ...]) -> str:
    """The kind of video to write for a source: its own if it can be; OpenCV keeps odd sizes in .avi only."""
    if any(side % 2 for side in size):
        return ".avi"
    return source.suffix if source.suffix.lower() in {".mp4", ".avi"} else ".mp4"


class VideoWriter:
    """Writes frames of one size; what was written stays playable when writing is cut short, as long as it is closed."""

    def __init__(self, path: Path, *, fps: float) -> None:
        self.path = path
        self.fps = fps
        self.writer: cv2.VideoWriter | None = None

    def write(self, frame: np.ndarray) -> None:
        """Append an (H, W, 3) uint8 RGB frame; the first one sets the size."""
        if self.writer is None:
            size = (frame.shape[1], frame.shape[0])
            is_odd = bool(size[0] % 2 or size[1] % 2)
            # FFmpeg would cut off the last row or column.
            library = cv2.CAP_OPENCV_MJPEG if is_odd else cv2.CAP_ANY
            codec = "MJPG" if is_odd else "XVID" if self.path.suffix.lower() == ".avi" else "mp4v"
            self.writer = cv2.VideoWriter(
                name_for_opencv(self.path), library, cv2.VideoWriter.fourcc(*codec), self.fps, size
            )
            if not self.writer.isOpened():
                raise VideoError(
                    f"cannot write the video {self.path} with the codec {codec}; use an output .mp4 or .avi"
                )
        self.writer.write(np.ascontiguousarray(frame[..., ::-1]))

    def close(self) -> None:
        if self.writer is not None:
            self.writer.release()

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
