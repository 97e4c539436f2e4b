"""Lists on standard input, and files that are named by their address."""

from __future__ import annotations

import functools
import io
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest
from PIL import Image

from salience_detr.inference import sources
from salience_detr.inference.sources import read_list, resolve_words


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture
def server(tmp_path, monkeypatch):
    """Serve a folder with one image, a.png; return its address."""
    monkeypatch.setenv("no_proxy", "*")
    folder = tmp_path / "served"
    folder.mkdir()
    Image.new("RGB", (8, 6)).save(folder / "a.png")
    handler = functools.partial(Quiet, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=[0.01], daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_files_at_addresses_are_downloaded(server, tmp_path):
    output = tmp_path / "out"
    words = [f"{server}/a.png?size=1", "b.jpg", f"{server}/none.png", f"{server}/a.png"]
    resolved = resolve_words(words, output)

    first, second = output / "downloads" / "a.png", output / "downloads" / "a_2.png"
    assert resolved.patterns == [str(first), "b.jpg", str(second)]
    assert Image.open(first).size == (8, 6) and first.read_bytes() == second.read_bytes()
    assert resolved.missing == [f"--input {server}/none.png cannot be downloaded: File not found"]


def test_a_list_is_read_from_standard_input(tmp_path, monkeypatch):
    content = b"a b.jpg\r\n\n  \n/c/\xff.png\nd"
    monkeypatch.setattr(sources.sys, "stdin", SimpleNamespace(buffer=io.BytesIO(content)))
    resolved = resolve_words(["x", "-"], tmp_path)
    assert resolved.patterns == ["x"] and resolved.listed == ["a b.jpg", "/c/\udcff.png", "d"]


def test_an_empty_list_is_an_error():
    with pytest.raises(ValueError, match="no path on standard input"):
        read_list(b"\n \n")
