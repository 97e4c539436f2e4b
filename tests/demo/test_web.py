"""The web page: its functions, its command line, and a visit in a real browser."""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import warnings
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances
from PIL import Image

from salience_detr.checkpoint import ScoreThresholds
from salience_detr.cli import web as web_program
from salience_detr.cli import web_page
from salience_detr.config import ConfigError
from salience_detr.data.mapper import DetectionMapper
from salience_detr.data.surface import generate_surface_defects
from salience_detr.detections import ClassTable
from salience_detr.detector import ModelDetector
from salience_detr.inference.loading import load_detector
from salience_detr.inference.video import VideoReader, VideoWriter
from salience_detr.predictor import Predictor
from tests.conftest import ROOT

CONFIG = ROOT / "configs" / "surface_defects_tiny.py"
WEIGHTS = ROOT / "demo" / "surface_defects_tiny.safetensors"
CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
CHROMEDRIVER = shutil.which("chromedriver")
CHROMIUM_FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run "
    "--disable-background-networking "
    "--disable-component-update --disable-sync --window-size=1400,1100"
)


@pytest.fixture(scope="module")
def web():
    return web_program


class Fixed(ModelDetector):
    """Detector of the same three objects on every image."""

    def __init__(self):
        classes = ClassTable(("pit", "<crack>"), (1, 7), ((255, 0, 0), (0, 0, 255)))
        super().__init__(classes, DetectionMapper(is_train=False, augmentations=[]))
        self.calls = 0

    def _infer(self, inputs):
        self.calls += 1
        size = inputs[0]["height"], inputs[0]["width"]
        instances = Instances(
            size,
            pred_boxes=Boxes(torch.tensor([[10.0, 10, 50, 40], [60, 20, 90, 30], [0, 0, 100, 50]])),
            scores=torch.tensor([0.9, 0.5, 0.3]),
            pred_classes=torch.tensor([0, 1, 0]),
        )
        return [(instances, np.zeros(size, np.float32))]


@pytest.fixture
def page(web):
    return web.Page(Fixed())


@pytest.fixture
def image(tmp_path):
    """Write a black image, 100 pixels wide and 50 high."""
    path = tmp_path / "image.png"
    Image.new("RGB", (100, 50)).save(path)
    return str(path)


def test_threshold_and_classes_filter_detections_of_one_pass(page, image):
    seen, _ = page.look(image)
    pit = ["pit", 0.9, 10, 10, 50, 40]
    crack = ["<crack>", 0.5, 60, 20, 90, 30]
    whole = ["pit", 0.3, 0, 0, 100, 50]

    # One pass of the detector serves every setting.
    for threshold, wanted, rows in (
        (0.0, [], [pit, crack, whole]),
        (0.5, [], [pit, crack]),
        (0.51, [], [pit]),
        (0.0, [0], [pit, whole]),
        (0.0, [0, 1], [pit, crack, whole]),
        (0.91, [], []),
        (0.6, [1], []),
    ):
        _, summary, table = page.show(seen, threshold, wanted)
        assert table == [[row[0], pytest.approx(row[1]), *row[2:]] for row in rows]
        assert f"<b>{len(rows)} detection{'' if len(rows) == 1 else 's'}</b>" in summary

    assert page.detector.calls == 1


def test_a_video_gives_its_drawings_and_results(page, tmp_path):
    upload = tmp_path / "hash"  # gradio gives each upload a folder of its own
    upload.mkdir()
    with VideoWriter(upload / "film.mp4", fps=5) as writer:
        for _ in range(3):
            writer.write(np.zeros((50, 100, 3), np.uint8))

    old = tmp_path / "detections_old"
    old.mkdir()
    os.utime(old, (0, 0))
    video, summary, files = page.watch(str(upload / "film.mp4"), 0.5, 0)
    assert not old.exists() and Path(video).is_relative_to(tmp_path)
    assert "6 detections</b> on 3 frames of film.mp4" in summary
    assert [file.rpartition(".")[2] for file in files] == ["csv", "json", "mp4"]
    assert video == files[2] and len(list(VideoReader(video))) == 3
    content = json.loads(Path(files[1]).read_text())
    names = {x["file_name"] for x in content["images"]}
    assert names == {"film.mp4"}  # without the folder of the server

    (upload / "bad.mp4").write_bytes(b"no video")
    for name, message in (("bad.mp4", "cannot open the video bad.mp4"), ("a.txt", "is no video")):
        video, summary, files = page.watch(str(upload / name), 0.5, 0)
        assert video is None and message in summary and files == []


def test_tiles_examples_and_the_best_threshold(page, image, web):
    calls = page.detector.calls
    page.detector.batch_size = 1
    seen, _ = page.look_at_example([image], 0, 64)  # two tiles, and the whole image
    assert page.detector.calls > calls + 1 and seen.name == "image.png"

    _, summary, _ = page.show(seen, 0.0, [])
    rows = base64.b64decode(summary.partition("text/csv;base64,")[2].partition('"')[0]).decode()
    assert rows.startswith("file,frame,class_id") and "image.png" in rows

    class Measured(Fixed):
        best_thresholds = ScoreThresholds({"pit": 0.2, "<crack>": 0.6}, 0.4, 0.5, "val.json")

    # Each class has its own threshold, and the slider does not count.
    assert not page.has_best
    page = web.Page(Measured())
    assert page.has_best
    _, _, table = page.show(page.look(image)[0], 0.95, [], True)
    assert [row[:2] for row in table] == [["pit", 0.9], ["pit", 0.3]]


def test_a_small_image_is_drawn_large_and_its_boxes_with_it(page, image):
    seen, salience = page.look(image)
    drawn, _, _ = page.show(seen, 0.6, [])
    assert drawn.shape == salience.shape == (450, 900, 3)  # 9 times as large

    for x, y in ((90, 200), (450, 200), (300, 360)):  # on the edges of the box of 90, 90, 450, 360
        assert drawn[y, x].tolist() == [255, 0, 0]

    # Neither outside of the box nor inside of it.
    for x, y in ((80, 200), (460, 200), (300, 200), (300, 370)):
        assert drawn[y, x].tolist() == [0, 0, 0]


def test_a_large_image_is_shown_small_but_detected_on_as_it_is(page, tmp_path):
    path = tmp_path / "large.png"
    Image.new("RGB", (4000, 1000)).save(path)
    seen, salience = page.look(str(path))
    drawn, summary, table = page.show(seen, 0.6, [])

    assert drawn.shape == salience.shape == (400, 1600, 3)
    assert "4000 × 1000 pixels" in summary and table[0][2:] == [10, 10, 50, 40]


@pytest.mark.parametrize("size", [(1, 1), (3000, 2), (2, 3000)])
def test_images_of_extreme_shapes_are_shown(page, tmp_path, size):
    path = tmp_path / "extreme.png"
    Image.new("RGB", size).save(path)
    seen, salience = page.look(str(path))
    drawn, _, _ = page.show(seen, 0.0, [])
    assert min(drawn.shape) >= 1 and drawn.shape == salience.shape


def test_uploads_are_read_as_everywhere(page, tmp_path):
    turned = Image.new("RGB", (30, 60))
    exif = turned.getexif()
    exif[0x0112] = 6  # a quarter turn
    turned.save(tmp_path / "turned.jpg", exif=exif)
    cv2.imwrite(str(tmp_path / "deep.png"), np.full((20, 30), 0x8000, np.uint16))
    Image.new("RGBA", (20, 20), (0, 0, 0, 0)).save(tmp_path / "clear.png")

    turned, _ = page.look(str(tmp_path / "turned.jpg"))
    deep, _ = page.look(str(tmp_path / "deep.png"))
    clear, _ = page.look(str(tmp_path / "clear.png"))

    # The image is 30 high once it is turned, 16 bits become 8, and a transparent image is white.
    assert turned.detections.image_size == (30, 60)
    assert np.unique(deep.shown).tolist() == [128] and np.unique(clear.shown).tolist() == [255]


def test_the_summary_has_safe_names_and_all_that_is_shown_as_json(page, tmp_path):
    path = tmp_path / "<i>&.png"
    Image.new("RGB", (100, 50)).save(path)
    _, summary, _ = page.show(page.look(str(path))[0], 0.5, [])

    assert "&lt;i&gt;&amp;.png" in summary
    assert "&lt;crack&gt; (1)" in summary and "<crack>" not in summary

    # The file keeps the true names, and the category ids of the data set.
    content = json.loads(base64.b64decode(summary.partition("base64,")[2].partition('"')[0]))
    assert content["images"] == [{"id": 1, "file_name": "<i>&.png", "height": 50, "width": 100}]
    assert [x["category_id"] for x in content["annotations"]] == [1, 7]
    assert content["annotations"][1]["bbox"] == [60, 20, 30, 10]


def test_before_the_first_image_nothing_is_shown(page):
    assert page.show(None, 0.5, [0]) == (None, "", [])


def test_a_file_that_is_no_image_is_a_message_without_its_folder(page, tmp_path, capsys):
    path = tmp_path / "<b>.jpg"
    path.write_bytes(b"\xff\xd8 no image")
    seen, salience = page.look(str(path))
    drawn, summary, table = page.show(seen, 0.5, [])

    assert "cannot read the image &lt;b&gt;.jpg" in summary and str(tmp_path) not in summary
    assert (salience, drawn, table) == (None, None, [])
    assert capsys.readouterr().err.startswith("error: cannot read the image <b>.jpg")


def test_a_failure_of_the_model_is_a_message(page, image, monkeypatch):
    def fail(inputs):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(page.detector, "_infer", fail)
    _, summary, _ = page.show(page.look(image)[0], 0.5, [])
    assert "out of memory" in summary


def test_an_image_of_too_many_pixels_is_refused_before_it_is_decoded(page, tmp_path, monkeypatch):
    # 20,000 x 20,000 zeros in PNG take 400 kB.
    Image.new("1", (20_000, 20_000)).save(tmp_path / "bomb.png")
    monkeypatch.setattr(web_page, "to_rgb", lambda path: pytest.fail("it was decoded"))

    seen, salience = page.look(str(tmp_path / "bomb.png"))

    assert seen.startswith("the image bomb.png has 20000 x 20000 pixels, and the page takes up to")
    assert "demo/demo.py" in seen and salience is None and page.detector.calls == 0


def test_an_image_at_the_limit_of_pixels_is_taken(page, image, monkeypatch):
    monkeypatch.setattr(web_page, "MAX_PIXELS", 100 * 50)
    assert not isinstance(page.look(image)[0], str)
    monkeypatch.setattr(web_page, "MAX_PIXELS", 100 * 50 - 1)
    assert "has 100 x 50 pixels" in page.look(image)[0]


def test_no_image_is_a_message(page):
    seen, salience = page.look(None)
    assert "there is no image" in page.show(seen, 0.5, [])[1] and salience is None


@pytest.fixture
def served(page, tmp_path, monkeypatch):
    """Serve the page of a fixed detector from this process; returns its address."""
    gradio = pytest.importorskip("gradio")
    monkeypatch.setattr(web_program, "MAX_FILE_BYTES", 100_000)
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "gradio"))
    monkeypatch.setattr(web_program, "load_detector", lambda *args, **options: page.detector)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)

    launched = []
    launch = gradio.Blocks.launch

    def note_launch(blocks, **options):
        result = launch(blocks, **options)
        launched.append((blocks, result[1]))
        return result

    # As if a signal came as soon as the page is up; the server's thread goes on.
    def interrupt(*words, **options):
        if words[0].startswith("Salience DETR at"):
            raise KeyboardInterrupt
        print(*words, **options)

    monkeypatch.setattr(gradio.Blocks, "launch", note_launch)
    monkeypatch.setattr(web_program, "print", interrupt, raising=False)
    args = web_program.parse_args(["--weights", "fixed", "--port", "0"])
    with warnings.catch_warnings():
        web_program.serve(args, str(tmp_path))
        [(blocks, address)] = launched
        yield address
        blocks.close()


def test_no_request_prints_a_traceback(served, capfd):
    httpx = pytest.importorskip("httpx")
    # The server closes a connection after an error.
    client = httpx.Client(base_url=served, timeout=30, headers={"Connection": "close"})
    file = {"meta": {"_type": "gradio.FileData"}}

    # Of wrong types, other files of the machine, a class that is not there, and no event at all.
    for name, data in (
        ("look", [None]),
        ("look", ["abc"]),
        ("look", [{"a": 1}]),
        ("look", []),
        ("look", [{"path": "/etc/passwd", **file}]),
        ("look", [{"path": "", **file}]),
        ("show", [None, None, None]),
        ("show", [None, "high", []]),
        ("show", [None, 0.5, ["no class"]]),
        ("show", [None, [1], 3]),
        ("absent", [None]),
    ):
        client.post(f"gradio_api/run/{name}", json={"data": data, "session_hash": "visitor"})
    client.post("gradio_api/run/predict", json={"data": [None], "fn_index": 99})
    client.post("gradio_api/upload", files={"files": ("", b"x")})
    client.post("gradio_api/run/look", content=b"{")

    assert client.post("gradio_api/upload", files={"files": ("a.png", b"x" * 99_000)}).is_success
    large = client.post("gradio_api/upload", files={"files": ("a.png", b"x" * 101_000)})
    assert large.status_code == 413 and "maximum allowed size" in large.text
    printed = "".join(capfd.readouterr())
    assert "Traceback" not in printed and "error: " in printed


def test_a_checkpoint_needs_a_config_and_an_export_takes_none(micro_config, tmp_path):
    assert isinstance(load_detector(CONFIG, WEIGHTS, device="cpu"), Predictor)
    unnamed = tmp_path / "unnamed.pth"  # the shipped weights name their config
    torch.save({"model": {}}, unnamed)

    for arguments, message in (
        ({"config": None, "weights": unnamed}, "--config-file"),
        ({"config": micro_config, "weights": "model.onnx"}, "leave out the config"),
        (
            {"config": None, "weights": "model.pt2", "overrides": ["model.num_queries=3"]},
            "leave out the override",
        ),
        ({"config": None, "weights": "model.onnx", "dtype": "float16"}, "not in float16"),
        ({"config": None, "weights": "model.pt2", "device": "cuda"}, "not on cuda"),
    ):
        with pytest.raises(ConfigError, match=message):
            load_detector(**arguments)


def test_a_busy_port_is_one_line_with_the_remedy(web, capsys):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert web.main(["--weights", str(WEIGHTS), "--port", str(port)]) == 2

    error = capsys.readouterr().err
    assert error.startswith(f"error: cannot listen at 127.0.0.1, port {port}: ")
    assert "choose another --port" in error
    assert error.count("\n") == 1


def test_without_gradio_the_extra_is_named(web, monkeypatch, capsys):
    # The program sets variables for gradio, which must not reach other tests.
    monkeypatch.setattr(os, "environ", dict(os.environ))
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert web.main(["--weights", str(WEIGHTS), "--port", "0"]) == 2
    error = capsys.readouterr().err
    assert error == "error: the page needs gradio: pip install 'salience_detr[web]'\n"


@pytest.fixture
def server(tmp_path):
    """Start the page of the shipped weights in a process of its own.

    Returns:
        Its address, the process, a function that reads its log, and its folder of files.
    """
    pytest.importorskip("gradio")
    files = tmp_path / "temporary"
    files.mkdir()
    # A proxy that is not there: the page must not need one.
    environment = os.environ | {
        "TMPDIR": str(files),
        "OMP_NUM_THREADS": "1",
        "http_proxy": "http://127.0.0.1:9",
    }
    command = [sys.executable, ROOT / "demo" / "web.py", "--config-file", CONFIG]
    command += ["--weights", WEIGHTS, "--device", "cpu", "--port", "0"]

    with open(tmp_path / "log", "w+") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        read_log = (tmp_path / "log").read_text
        try:
            wait_for(lambda: "http://" in read_log() or process.poll(), "the server", seconds=120)
            address = read_log().partition("Salience DETR at ")[2].split(" ")[0]
            assert address, read_log()
            yield SimpleNamespace(address=address, process=process, read_log=read_log, files=files)
        finally:
            process.kill()
            process.wait()


@pytest.fixture
def browser(tmp_path):
    """Start headless Chromium."""
    webdriver = pytest.importorskip("selenium.webdriver")
    if not (CHROMIUM and CHROMEDRIVER):
        pytest.skip(
            "needs chromium and chromedriver (Debian: apt-get install chromium chromium-driver)"
        )

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in [*CHROMIUM_FLAGS.split(), f"--user-data-dir={tmp_path / 'profile'}"]:
        options.add_argument(flag)

    # The performance log has every request of the page.
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    service = webdriver.chrome.service.Service(executable_path=CHROMEDRIVER)
    try:
        driver = webdriver.Chrome(options=options, service=service)
    except pytest.importorskip("selenium.common").WebDriverException as error:
        pytest.skip(f"chromium does not start here: {error}")

    yield driver
    driver.quit()


def wait_for(condition, name, *, seconds=30):
    """Wait for a true value of the condition, and return it."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := condition():
            return value
        time.sleep(0.05)
    pytest.fail(f"{name} did not come in {seconds} s")


class Visit:
    """Actions of a visitor on the page, and waits for their effects."""

    def __init__(self, browser, address):
        self.browser = browser
        browser.get(address)
        wait_for(lambda: self.find("#upload input[type=file]"), "the page")

    def find(self, selector):
        return self.browser.find_elements("css selector", selector)

    def upload(self, path):
        fields = wait_for(lambda: self.find("#upload input[type=file]"), "the upload field")
        fields[0].send_keys(str(path))

    def choose_threshold(self, value):
        field = self.find("#threshold input[type=number]")[0]
        field.clear()
        field.send_keys(f"{value}\n")

    def wait_for_text(self, text):
        wait_for(
            lambda: text in self.browser.execute_script("return document.body.innerText"),
            repr(text),
        )

    def wait_for_rows(self, count):
        wait_for(
            lambda: len(self.find("#table [role=row]")) == count + 1,
            f"{count} rows and the headings",
        )

    def wait_for_images(self, *widths):
        script = "return [...document.querySelectorAll('.image img')].map(x => x.naturalWidth)"
        wait_for(
            lambda: self.browser.execute_script(script) == list(widths),
            f"images of widths {widths}",
        )

    def requested(self):
        """Return the requested addresses, without the browser's own pages."""
        urls = []
        for entry in self.browser.get_log("performance"):
            message = json.loads(entry["message"])["message"]
            if message["method"] == "Network.requestWillBeSent":
                urls.append(message["params"]["request"]["url"])
        return [url for url in urls if not url.startswith(("chrome:", "data:", "blob:"))]


def test_a_visit_in_a_real_browser(browser, server, tmp_path):
    root = tmp_path / "data"
    generate_surface_defects(root, split="val", num_images=1, seed=1, progress=False)
    image = shutil.copy(next(root.rglob("*.jpg")), tmp_path / "Blech 鋼.jpg")
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"\xff\xd8 no image")
    detector = load_detector(CONFIG, WEIGHTS, device="cpu")
    scores = detector(image).scores
    best = load_detector(CONFIG, WEIGHTS, device="cpu", score_threshold="best")(image)
    thresholds = (0.2, 0.5, 0.87)
    many, some, few = (int((scores >= threshold).sum()) for threshold in thresholds)

    assert 9 > many > some > few > 0  # more rows would not all be in sight

    # The first image is shown with the threshold of 0.5.
    visit = Visit(browser, server.address)
    visit.upload(image)
    visit.wait_for_text("Best score threshold of each class")
    visit.wait_for_text(f"{some} detections on Blech 鋼.jpg")
    visit.wait_for_rows(some)
    visit.wait_for_images(900, 900)

    for threshold, count in ((0.2, many), (0.87, few)):
        visit.choose_threshold(threshold)
        visit.wait_for_text(f"{count} detection")
        visit.wait_for_rows(count)

    visit.find("#best input")[0].click()
    visit.wait_for_rows(len(best))
    visit.find("#best input")[0].click()
    visit.wait_for_rows(few)

    # A message replaces all that was shown, and the next image works again.
    visit.upload(broken)
    visit.wait_for_text("cannot read the image broken.jpg")
    visit.wait_for_rows(0)
    visit.wait_for_images()
    visit.upload(image)
    visit.wait_for_rows(few)
    visit.wait_for_images(900, 900)

    # The page needs no other server.
    requested = visit.requested()

    assert requested and [url for url in requested if not url.startswith(server.address)] == []
    assert any(server.files.rglob("Blech*.jpg"))

    server.process.send_signal(signal.SIGINT)
    assert server.process.wait(timeout=30) == 0
    assert "Traceback" not in server.read_log()
    assert not any(server.files.rglob("*.jpg"))  # uploads and drawings are gone
