"""Reading and writing video files frame by frame, with OpenCV."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import cv2
import numpy as np

VIDEO_ENDINGS = {".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg"}


class VideoError(RuntimeError):
    """A video that cannot be read or written."""


class VideoReader:
    """Frames of a video file (a path) or of a camera (a number).

    Attributes:
        fps: frames per second, 25 where the source does not say.
        num_frames: None where the source does not say.
        size: (width, height) of a frame.
    """

    def __init__(self, source: str | Path | int) -> None:
        self.capture = cv2.VideoCapture(source if isinstance(source, int) else str(source))
        if not self.capture.isOpened():
            what = f"camera {source}" if isinstance(source, int) else f"the video {source}"
            raise VideoError(f"cannot open {what}; it is missing or of an unknown kind")
        fps = self.capture.get(cv2.CAP_PROP_FPS)
        self.fps = fps if np.isfinite(fps) and fps > 0 else 25.0
        self.size = tuple(int(self.capture.get(x)) for x in (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT))
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
            self.writer = cv2.VideoWriter(str(self.path), library, cv2.VideoWriter.fourcc(*codec), self.fps, size)
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
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
