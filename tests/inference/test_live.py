"""Cameras and streams: what names them, and connections that break, come back, or never come."""

from __future__ import annotations

import socket
import threading
import time
from functools import partial
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import cv2
import pytest

from salience_detr.inference import live
from salience_detr.inference.encoders import VideoError
from salience_detr.inference.live import LiveSource, StreamReader, explain, find_live_source
from salience_detr.inference.video import LatestFrames
from tests.inference.fake_detector import paint


class Camera(ThreadingHTTPServer):
    """MJPEG server on this machine.

    Args:
        counts: number of frames that each connection gets; afterwards none is accepted.
    """

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, counts, *, pause=0.01):
        super().__init__(("127.0.0.1", 0), CameraHandler)
        self.counts = list(counts)
        self.pause = pause
        self.address = f"http://127.0.0.1:{self.server_port}/video"
        threading.Thread(target=self.serve_forever, args=[0.01], daemon=True).start()


class CameraHandler(BaseHTTPRequestHandler):
    def do_GET(self):
        count = self.server.counts.pop(0) if self.server.counts else None
        if count is None:
            self.send_error(404)
            return

        self.send_response(200)
        self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
        self.end_headers()
        image = paint(48, 64, (10, 10, 30, 30, 0))[..., ::-1]
        data = cv2.imencode(".jpg", image)[1].tobytes()
        head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(data)}\r\n\r\n"
        for _ in range(count):
            self.wfile.write(head.encode() + data + b"\r\n")
            time.sleep(self.server.pause)

    def log_message(self, *args):
        pass


@pytest.fixture
def camera(request, monkeypatch):
    monkeypatch.setattr(live, "FIRST_PAUSE", 0.05)
    monkeypatch.setattr(live, "STEP", 0.02)
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)

    server = Camera(request.param)
    yield server
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("camera", [[8, 5, 0, 4]], indirect=True)
def test_a_stream_that_is_lost_is_connected_again_until_it_ends(camera, capsys):
    reader = StreamReader(LiveSource(camera.address, timeout=0.6))
    frames = [frame for frame in reader if frame is not None]

    assert reader.size == (64, 48) and reader.fps == 25
    assert len(frames) == 17 and reader.num_losses == 2
    assert frames[0][20, 20].tolist() == pytest.approx([254, 0, 0], abs=6)  # red, as RGB
    assert "has ended: no frame for 0.6 s, and " in reader.ending
    assert "attempts to connect again (the server answers 404" in reader.ending

    lines = capsys.readouterr().err
    assert lines.count("is lost; connecting again") == 3 and lines.count("is back") == 2


def test_a_file_without_an_ending_is_no_stream(tmp_path):
    image = paint(48, 64, (10, 10, 30, 30, 0))
    (tmp_path / "photo").write_bytes(cv2.imencode(".jpg", image)[1].tobytes())
    handler = partial(SimpleHTTPRequestHandler, directory=tmp_path)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=[0.01], daemon=True).start()
        reader = StreamReader(LiveSource(f"http://127.0.0.1:{server.server_port}/photo"))
        assert len(list(reader)) == 1
        server.shutdown()
    assert "is a file and no stream: download it, and give --input its path" in reader.ending


@pytest.mark.parametrize("camera", [[6] * 200], indirect=True)
def test_a_server_that_gives_few_frames_and_hangs_up_is_left_time(camera, monkeypatch):
    monkeypatch.setattr(live, "FIRST_PAUSE", 0.2)
    end = time.monotonic() + 1
    for _ in StreamReader(LiveSource(camera.address)):
        if time.monotonic() > end:
            break
    assert len(camera.counts) > 190


@pytest.mark.parametrize("camera", [[40]], indirect=True)
def test_the_newest_frame_of_a_stream_is_taken(camera):
    seen = 0
    for _ in LatestFrames(StreamReader(LiveSource(camera.address, timeout=0.2))):
        seen += 1
        time.sleep(0.1)  # ten frames of the stream
    assert 3 <= seen < 15


@pytest.mark.parametrize("camera", [[10]], indirect=True)
def test_leaving_a_stream_that_is_lost_does_not_wait_for_it(camera):
    frames = LatestFrames(StreamReader(LiveSource(camera.address, timeout=60)))
    for _ in frames:
        time.sleep(0.2)  # by then the stream is lost
        break
    begin = time.monotonic()
    frames.close()
    assert time.monotonic() - begin < 1.5 and not frames.thread.is_alive()


def test_a_stream_that_cannot_be_reached_is_an_error_without_the_password():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    address = f"rtsp://me:secret@127.0.0.1:{port}/live"
    with pytest.raises(VideoError, match="refused") as error:
        StreamReader(LiveSource(address))
    assert f"cannot open the stream rtsp://***@127.0.0.1:{port}/live: " in str(error.value)


@pytest.mark.parametrize("scheme", ["http", "rtsp"])
def test_a_server_that_hangs_is_given_up(scheme, monkeypatch):
    monkeypatch.setattr(live, "CONNECT_SECONDS", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"{scheme}://127.0.0.1:{server.getsockname()[1]}/live"
        begin = time.monotonic()
        with pytest.raises(VideoError, match=r"timed out|sends no video"):
            StreamReader(LiveSource(address))
        assert time.monotonic() - begin < 3


@pytest.mark.parametrize(
    ("words", "address"),
    [
        (["rtsp://cam/1"], "rtsp://cam/1"),
        (["http://cam:8080/video?x=1"], "http://cam:8080/video?x=1"),
        (["http://cam/video.mjpg"], "http://cam/video.mjpg"),
        (["0"], 0),
        (["http://host/a.jpg", "folder"], None),
        (["HTTP://host/film.MP4"], None),
        (["a.jpg", "b"], None),
    ],
)
def test_streams_and_cameras_are_told_from_files(words, address, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = find_live_source(words, 5.0)
    assert (source and source.address) == address
    (tmp_path / "0").touch()
    assert find_live_source(["0"], 5.0) is None  # a file of this name


def test_a_stream_beside_other_inputs_is_refused():
    with pytest.raises(ValueError, match=r"rtsp://\*\*\*@cam/1: a camera or stream is watched"):
        find_live_source(["a.jpg", "rtsp://u:p@cam/1"], 5.0)


def test_outputs_of_a_stream_are_named_by_its_address_without_the_password():
    assert LiveSource("rtsp://u:p@cam.local:554/live/1").path == Path("cam_local_live_1.mp4")
    assert LiveSource(2).path == Path("webcam2.mp4")


def test_an_address_that_cannot_be_one_is_explained():
    assert "Port could not be cast" in explain("rtsp://cam:port/1")
    assert explain("udp://") == "no data comes from the address"
