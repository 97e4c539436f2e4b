"""Live sources: cameras and network streams, which are watched for their newest frame."""

from __future__ import annotations

import base64
import http.client
import os
import re
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

import cv2
import numpy as np
from tqdm import tqdm

from salience_detr.data.endings import image_endings
from salience_detr.inference.encoders import VideoError
from salience_detr.inference.timeline import Timeline
from salience_detr.inference.video import VIDEO_ENDINGS, VideoReader

# Ports of the schemes that use TCP.
PORTS = {"http": 80, "https": 443, "rtsp": 554, "rtsps": 322, "rtmp": 1935}
SCHEMES = {*PORTS, "rtmps", "udp", "tcp", "srt", "rtp"}

# An address of one of these is a stream, although files have the endings, too.
STREAM_ENDINGS = {".mjpg", ".mjpeg", ".ts", ".m2ts", ".mts"}
# Lists of the parts of a stream, which are files themselves.
PLAYLIST_ENDINGS = {".m3u8", ".m3u", ".mpd", ".sdp"}

CONNECT_SECONDS = 10.0  # until a connection that gives nothing is given up
FIRST_PAUSE = 0.5  # seconds before the second attempt to connect; each further pause is twice it
LONGEST_PAUSE = 8.0
STEP = 0.25  # seconds after which a pause looks whether the run has ended


def scheme_of(word: str) -> str:
    """Return the scheme of an address, such as "rtsp"; nothing for a path."""
    scheme, separator, _ = word.partition("://")
    if not separator:
        return ""
    return scheme.lower()


def is_file_address(word: str) -> bool:
    """Return whether an address is that of an image or video file, by its ending."""
    if scheme_of(word) not in ("http", "https"):
        return False

    ending = Path(urlsplit(word).path).suffix.lower()
    return ending in (image_endings() | VIDEO_ENDINGS) - STREAM_ENDINGS


def hide_password(address: str) -> str:
    """Return an address with *** in place of its user name and password."""
    return re.sub(r"(?<=://)[^/@]*@", "***@", address)


@dataclass(frozen=True)
class LiveSource:
    """Camera or stream.

    Attributes:
        address: number of a camera, or address of a stream.
        timeout: seconds without a frame after which a stream has ended.
    """

    address: int | str
    timeout: float = 30.0

    @property
    def title(self) -> str:
        """Return the name for messages; it has no password."""
        if isinstance(self.address, int):
            return f"camera {self.address}"
        return f"the stream {hide_password(self.address)}"

    @property
    def path(self) -> Path:
        """Return the name of the video that stands for the source in outputs and results."""
        if isinstance(self.address, int):
            return Path(f"webcam{self.address}.mp4")

        parts = urlsplit(self.address)
        words = re.findall(r"\w+", f"{parts.hostname} {unquote(parts.path)}")
        return Path("_".join(words)[:100] + ".mp4")

    def open(self) -> VideoReader | StreamReader:
        """Open the source.

        Raises:
            VideoError: it cannot be opened.
        """
        if isinstance(self.address, int):
            return VideoReader(self.address)
        return StreamReader(self)


def find_live_source(words: Sequence[str], timeout: float) -> LiveSource | None:
    """Return the camera or stream that an input names, None if all are files.

    Raises:
        ValueError: there are other inputs besides.
    """
    live = [word for word in words if is_camera(word) or is_stream(word)]
    if not live:
        return None
    if len(words) > 1:
        raise ValueError(
            f"--input {hide_password(live[0])}: a camera or stream is watched alone; start a run "
            "for each, and one for the files"
        )
    if is_camera(live[0]):
        return LiveSource(int(live[0]), timeout)
    return LiveSource(live[0], timeout)


def is_camera(word: str) -> bool:
    """Return whether an input is the number of a camera rather than the name of a file."""
    return word.isdecimal() and len(word) < 10 and not os.path.exists(word)


def is_stream(word: str) -> bool:
    """Return whether an input is the address of a stream."""
    return scheme_of(word) in SCHEMES and not is_file_address(word)


class StreamReader:
    """Reader of the frames of a stream, which connects again when the stream is lost.

    Attributes:
        fps: frames per second; 25 where the stream has no usable rate.
        num_frames: None, a stream has no known end.
        size: (width, height) of a frame.
        timeline: places of frames, which follow the clock instead.
        ending: how the stream ended; empty until then.
        num_losses: how often it was lost and found again.

    Raises:
        VideoError: it cannot be reached, or sends no video.
    """

    def __init__(self, source: LiveSource) -> None:
        self.source = source
        self.num_frames = None
        self.ending = ""
        self.num_losses = 0

        # What OpenCV and FFmpeg print about a lost connection is said here in one line.
        os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "8")
        cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
        capture = self.connect(min(CONNECT_SECONDS, source.timeout))
        if capture is None:
            raise VideoError(f"cannot open {source.title}: {explain(str(source.address))}")
        self.capture: cv2.VideoCapture | None = capture

        self.fps = capture.get(cv2.CAP_PROP_FPS)
        if not 0.1 <= self.fps <= 240:
            self.fps = 25.0
        self.timeline = Timeline(self.fps, None)
        width = int(capture.get(cv2.CAP_PROP_FRAME_WIDTH))
        height = int(capture.get(cv2.CAP_PROP_FRAME_HEIGHT))
        self.size = (width, height)

    def connect(self, timeout: float) -> cv2.VideoCapture | None:
        """Return an open capture, or None after ``timeout`` seconds without one."""
        milliseconds = max(1, round(1000 * timeout))
        limits = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, milliseconds]
        limits += [cv2.CAP_PROP_READ_TIMEOUT_MSEC, milliseconds]
        capture = cv2.VideoCapture(str(self.source.address), cv2.CAP_FFMPEG, limits)
        if capture.isOpened():
            return capture

        capture.release()
        return None

    def __iter__(self) -> Iterator[np.ndarray | None]:
        """Yield (H, W, 3) uint8 RGB frames, and None from time to time while there are none."""
        received = time.monotonic()
        connected = received
        attempts = 0
        pause = 0.0

        while True:
            decoded = False
            if self.capture is not None:
                decoded, frame = self.capture.read()

            if decoded:
                if attempts:
                    self.num_losses += 1
                    tqdm.write(f"{self.source.title} is back", file=sys.stderr)
                attempts = 0
                received = time.monotonic()
                if received - connected >= FIRST_PAUSE:
                    pause = 0.0  # not where a server gives few frames and hangs up
                yield np.ascontiguousarray(frame[..., ::-1])  # OpenCV's frames are BGR
                continue

            # The stream is lost: connect again, with longer and longer pauses.
            self.close()
            if attempts == 0 and is_file_on_server(str(self.source.address)):
                self.ending = (
                    f"{self.source.title} is a file and no stream: download it, and give --input "
                    "its path"
                )
                return
            if attempts == 0:
                tqdm.write(f"{self.source.title} is lost; connecting again", file=sys.stderr)

            resume = time.monotonic() + pause
            while time.monotonic() < resume:
                yield None
                time.sleep(STEP)
            pause = min(max(FIRST_PAUSE, 2 * pause), LONGEST_PAUSE)

            left = received + self.source.timeout - time.monotonic()
            if left <= 0 and attempts > 0:
                reason = explain(str(self.source.address))
                self.ending = (
                    f"{self.source.title} has ended: no frame for {self.source.timeout:g} s, and "
                    f"{attempts} attempts to connect again ({reason})"
                )
                return

            yield None
            attempts += 1
            self.capture = self.connect(min(CONNECT_SECONDS, max(left, 1.0)))
            connected = time.monotonic()

    def close(self) -> None:
        """Release the connection."""
        if self.capture is not None:
            self.capture.release()
        self.capture = None


def explain(address: str) -> str:
    """Return the reason why a stream gives no frames, as far as its server tells."""
    parts = urlsplit(address)
    no_video = "it answers, but sends no video; check the path, user and password of the address"
    try:
        port = parts.port or PORTS.get(parts.scheme.lower())
    except ValueError as error:
        return str(error)
    if port is None or not parts.hostname:
        return "no data comes from the address"

    # A server that can be reached may still have no such stream.
    try:
        if parts.scheme.lower() in ("http", "https"):
            status = ask_http(address)
            return status or no_video
        with socket.create_connection((parts.hostname, port), timeout=CONNECT_SECONDS):
            return no_video
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        return f"{parts.hostname}, port {port}, cannot be reached: {reason}"


def is_file_on_server(address: str) -> bool:
    """Return whether an HTTP server gives a length for what is at an address: a file, no stream."""
    parts = urlsplit(address)
    if parts.scheme.lower() not in ("http", "https"):
        return False
    if Path(parts.path).suffix.lower() in PLAYLIST_ENDINGS:
        return False

    try:
        response = request(address, "HEAD")
    except (OSError, ValueError, http.client.HTTPException):
        return False
    length = response.getheader("Content-Length") or "0"
    is_stream = (response.getheader("Content-Type") or "").startswith("multipart/")
    return response.status < 400 and length != "0" and not is_stream


def ask_http(address: str) -> str:
    """Return the error that an HTTP server answers, or nothing."""
    response = request(address, "GET")
    if response.status < 400:
        return ""
    return f"the server answers {response.status} {response.reason}"


def request(address: str, method: str) -> http.client.HTTPResponse:
    """Return the head of an HTTP server's answer.

    Raises:
        OSError, ValueError, http.client.HTTPException: there is none.
    """
    parts = urlsplit(address)
    connection_type: type[http.client.HTTPConnection] = http.client.HTTPConnection
    if parts.scheme.lower() == "https":
        connection_type = http.client.HTTPSConnection

    # The library of requests does not take them from the address.
    headers = {}
    if parts.username is not None:
        login = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        headers["Authorization"] = "Basic " + base64.b64encode(login.encode()).decode()

    connection = connection_type(str(parts.hostname), parts.port, timeout=CONNECT_SECONDS)
    try:
        path = parts._replace(scheme="", netloc="", fragment="").geturl()
        connection.request(method, path or "/", headers=headers)
        return connection.getresponse()
    finally:
        connection.close()
