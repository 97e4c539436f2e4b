"""Web page that shows the detections and the salience of an image that is dropped on it."""

from __future__ import annotations

import argparse
import base64
import contextlib
import html
import json
import logging
import os
import sys
import tempfile
import threading
import time
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from salience_detr.cli.arguments import run_program
from salience_detr.cli.flags.web import parse_args
from salience_detr.cli.web_server import ServerErrors, free_port
from salience_detr.cli.web_video import KEEP_SECONDS, alert, detect_on_video
from salience_detr.data.images import to_rgb
from salience_detr.data.surface import SURFACE_DEFECT_CLASSES, generate_surface_defects
from salience_detr.detections import Detections
from salience_detr.inference.inputs import image_size
from salience_detr.inference.loading import load_detector
from salience_detr.inference.result_files import CocoResults, csv_text
from salience_detr.inference.tiling import TiledDetector
from salience_detr.predictor import Detector
from salience_detr.utils.drawing import draw_detections, draw_salience, resize_between
from salience_detr.utils.drawing_options import DEFAULTS, DrawingOptions, drawing_options
from salience_detr.utils.errors import one_line, print_error
from salience_detr.utils.signals import StopSignals

if TYPE_CHECKING:
    import gradio

# Limits of an upload. A file of a few kilobytes may hold an image that fills the memory.
MAX_FILE_BYTES = 200 * 2**20
MAX_PIXELS = 100_000_000

# Range of the longer side of a shown image: labels are legible, and the page loads quickly.
SHOWN_SIDES = (900, 1600)
COLUMNS = ["class", "score", "x0", "y0", "x1", "y1"]
MAX_VISITORS = 200  # maximum number of visitors whose state is kept, up to 8 MB each

# A tall image must not push the table off the screen.
CSS = ".image img { max-height: 75vh; object-fit: contain !important; }"

TILES = [("none", 0), ("320 pixels", 320), ("640 pixels", 640), ("1024 pixels", 1024)]
NUM_EXAMPLES = 3
EXAMPLE_SEED = 1

TableRow = list[str | float]  # a value for each of the columns


@dataclass(frozen=True)
class Seen:
    """Last image of a visitor.

    Attributes:
        name: name of the file.
        detections: detections of any score, in the frame of the image.
        shown: (h, w, 3) uint8 RGB, the image resized for the page.
        seconds: time of reading and detection.
    """

    name: str
    detections: Detections
    shown: np.ndarray
    seconds: float


class Page:
    """Functions behind the page. They keep no state, so that many visitors can use it.

    Args:
        detector: a detector with a score threshold of 0.
        drawing: lines, labels, filling and colors of the drawings.
    """

    def __init__(self, detector: Detector, *, drawing: DrawingOptions = DEFAULTS) -> None:
        self.detector = detector
        self.names = detector.class_names
        self.drawing = drawing
        self.colors = drawing.palette(self.names, detector.classes.colors)

        # The weights may hold the threshold that was best on a data set.
        self.best_threshold: float | None = None
        thresholds = detector.best_thresholds
        if thresholds is not None:
            self.best_threshold = round(thresholds.overall, 2)

    def tiled(self, tile: int) -> Detector:
        """Return the detector for tiles of a size; for 0 the detector itself."""
        if not tile:
            return self.detector
        return TiledDetector(self.detector, tile=tile)

    def look(self, path: str | None, tile: int = 0) -> tuple[Seen | str, np.ndarray | None]:
        """Detect on the image in a file.

        Args:
            path: the file.
            tile: side of the tiles in pixels, 0 for the whole image.

        Returns:
            The state for :meth:`show` and the drawn salience, or an error message and None.
        """
        if path is None:
            return "there is no image; drop one on the page", None

        start = time.perf_counter()
        name = Path(path).name
        try:
            check_num_pixels(path)
            image = to_rgb(path, "RGB", self.detector.value_range)
            output = next(self.tiled(tile).stream([image]))
            seconds = time.perf_counter() - start
            shown = resize_between(image, *SHOWN_SIDES)
            salience = draw_salience(shown, resize_between(output.salience, *SHOWN_SIDES))
        except Exception as error:  # the page must survive any file
            message = one_line(error).replace(path, name)
            print(f"error: {message}", file=sys.stderr, flush=True)
            return message, None

        # The state refers to the file, since the image in full size may be large.
        classes = self.detector.classes
        read_again = partial(to_rgb, path, "RGB", self.detector.value_range)
        detections = Detections(output.detections, classes, read_again)
        return Seen(name, detections, shown, seconds), salience

    def show(
        self, seen: Seen | str | None, threshold: float, wanted: Sequence[int]
    ) -> tuple[np.ndarray | None, str, list[TableRow]]:
        """Return the image with boxes, a summary as HTML, and the rows of the table.

        Args:
            seen: the state or error message of :meth:`look`; None before the first image.
            threshold: detections with lower scores are left out.
            wanted: indices of the classes to show; an empty list means all.
        """
        if seen is None:
            return None, "", []
        if isinstance(seen, str):
            return None, alert(seen), []

        kept = seen.detections[seen.detections.scores >= threshold]
        if wanted:
            kept = kept[torch.isin(kept.pred_classes, torch.tensor(wanted))]

        # The table has the boxes in the frame of the file, the drawing in that of the shown image.
        height, width = kept.image_size
        rows, columns = seen.shown.shape[:2]
        scaled = kept.to("cpu")
        scaled.pred_boxes = kept.pred_boxes.clone()
        scaled.pred_boxes.scale(columns / width, rows / height)
        drawn = draw_detections(
            seen.shown,
            scaled,
            class_names=self.names,
            colors=self.detector.classes.colors,
            options=self.drawing,
        )

        table: list[TableRow] = []
        boxes = kept.pred_boxes.tensor.tolist()
        for label, score, box in zip(kept.labels, kept.scores.tolist(), boxes, strict=True):
            table.append([label, round(score, 3), *(round(x, 1) for x in box)])

        return drawn, self._summary(seen, kept), table

    def _summary(self, seen: Seen, kept: Detections) -> str:
        """Return HTML with the number of detections of each class and a link to save them."""
        # Names of files and classes are escaped: both may have characters of HTML.
        counts = Counter(kept.pred_classes.tolist())
        classes = ", ".join(f"{self.names[i]} ({counts[i]})" for i in sorted(counts))

        # A data URL needs no file on the server.
        coco = CocoResults(self.detector.classes)
        coco.add(kept, seen.name)
        content = base64.b64encode(json.dumps(coco.content()).encode()).decode()
        table = csv_text(kept, self.detector.classes, seen.name)
        rows = base64.b64encode(table.encode(errors="replace")).decode()

        height, width = kept.image_size
        plural = "" if len(kept) == 1 else "s"
        name = html.escape(seen.name)
        return (
            f"<b>{len(kept)} detection{plural}</b> on {name} "
            f"({width} × {height} pixels, {seen.seconds:.2f} s)<br>{html.escape(classes)}<br>"
            f'<a download="{name}.json" href="data:application/json;base64,{content}">'
            "Save as JSON (COCO format)</a> · "
            f'<a download="{name}.csv" href="data:text/csv;base64,{rows}">Save as CSV</a>'
        )

    def look_at_example(
        self, examples: Sequence[str], index: int, tile: int
    ) -> tuple[Seen | str, np.ndarray | None]:
        """Detect on an example that was clicked on."""
        return self.look(examples[index], tile)

    def watch(
        self, path: str | None, threshold: float, tile: int
    ) -> tuple[str | None, str, list[str]]:
        """Detect on the frames of a video.

        Args:
            path: the file.
            threshold: detections with lower scores are left out.
            tile: side of the tiles in pixels, 0 for the whole image.

        Returns:
            The path of the video with the drawings, a summary as HTML, and the paths of the video
            and the result files to save. An error has no paths.
        """
        if path is None:
            return None, "there is no video; drop one on the page", []
        return detect_on_video(self.tiled(tile), Path(path), threshold, self.drawing)


def write_examples(folder: Path) -> list[str]:
    """Write a few small images of generated surface defects, and return their paths."""
    generate_surface_defects(
        folder, split="val", num_images=NUM_EXAMPLES, seed=EXAMPLE_SEED, progress=False
    )
    return sorted(str(path) for path in folder.rglob("*.jpg"))


def check_num_pixels(path: str) -> None:
    """Raise ValueError for an image of too many pixels, by its header, before it is decoded."""
    width, height = image_size(Path(path))
    if width * height > MAX_PIXELS:
        raise ValueError(
            f"the image {path} has {width} x {height} pixels, and the page takes up to "
            f"{MAX_PIXELS:,}; use demo/demo.py, with --tile for small objects"
        )


def clip_threshold(payload: float | None) -> float:
    """Return a threshold from 0 to 1; an empty field counts as 0."""
    return min(max(payload or 0.0, 0.0), 1.0)


def build_blocks(page: Page, model: str, examples: Sequence[str] = ()) -> gradio.Blocks:
    """Build the components of the page and their events.

    Args:
        page: functions behind it.
        model: description of the detector.
        examples: paths of images to click on.
    """
    import gradio as gr  # an optional package

    # Deletes files older than KEEP_SECONDS, six times as often.
    caching = (KEEP_SECONDS // 6, KEEP_SECONDS)
    image = partial(gr.Image, format="jpeg", interactive=False, elem_classes="image")

    class Blocks(gr.Blocks):
        """Blocks that report an event that fails, such as one with wrong inputs, in one line."""

        async def process_api(self, *args: Any, **options: Any) -> dict[str, Any]:
            try:
                return await super().process_api(*args, **options)
            except Exception as error:  # gradio would print a traceback
                print_error(error)
                raise gr.Error(one_line(error), print_exception=False) from error

    with Blocks(title="Salience DETR", analytics_enabled=False, delete_cache=caching) as blocks:
        gr.HTML(f"<h1>Salience DETR</h1>{html.escape(model)}")
        seen = gr.State(None, time_to_live=KEEP_SECONDS)

        with gr.Row():
            with gr.Column(scale=1, min_width=280):
                with gr.Tab("Image"):
                    file = gr.File(label="Image", height=140, elem_id="upload")
                with gr.Tab("Video"):
                    film = gr.File(label="Video", height=140, elem_id="upload-video")
                threshold = gr.Slider(0, 1, 0.5, label="Lowest score", elem_id="threshold")
                # gradio's own check would raise an error for an empty field.
                threshold.preprocess = clip_threshold  # type: ignore[method-assign]
                best = gr.Button(
                    f"Use the best score threshold, {page.best_threshold}",
                    size="sm",
                    visible=page.best_threshold is not None,
                    elem_id="best",
                )
                choices = [(name, i) for i, name in enumerate(page.names)]
                wanted = gr.Dropdown(choices, value=[], multiselect=True, label="Classes to show")
                tile = gr.Dropdown(TILES, value=0, label="Tiles, for small objects on large images")
                summary = gr.HTML("Drop an image to see detections.", elem_id="summary")
                gallery = gr.Dataset(
                    components=[gr.Image(visible=False)],
                    samples=[[path] for path in examples],
                    type="index",
                    label="Examples",
                    visible=bool(examples),
                    elem_id="examples",
                )
            with gr.Column(scale=3):
                with gr.Row():
                    boxes = image(label="Detections")
                    salience = image(label="Salience: purple (none) to yellow (most)")
                table = gr.Dataframe(
                    headers=COLUMNS, label="Boxes in pixels", interactive=False, elem_id="table"
                )
                played = gr.Video(label="Video", interactive=False, elem_id="video", height=420)
                files = gr.Files(label="Files to save", interactive=False)

        inputs = [seen, threshold, wanted]
        outputs = [boxes, summary, table]

        # Detection runs on one image or video at a time; drawing has no limit.
        one: dict[str, Any] = {
            "concurrency_id": "detector",
            "concurrency_limit": 1,
            "trigger_mode": "multiple",
        }
        looked = file.upload(page.look, [file, tile], [seen, salience], **one)
        shown = looked.then(page.show, inputs, outputs, concurrency_limit=None)
        click = partial(page.look_at_example, examples)
        clicked = gallery.click(click, [gallery, tile], [seen, salience], api_name="example", **one)
        clicked.then(page.show, inputs, outputs, concurrency_limit=None)

        watched = film.upload(page.watch, [film, threshold, tile], [played, summary, files], **one)
        watched.then(lambda: None, None, film)

        # The emptied field accepts the next image.
        shown.then(lambda: None, None, file)

        # The slider then causes its own event.
        best.click(lambda: page.best_threshold, None, threshold)

        # A moving slider causes many events; only the last one matters.
        gr.on(
            [threshold.change, wanted.change], page.show, inputs, outputs,
            concurrency_limit=None, trigger_mode="always_last", show_progress="hidden",
        )  # fmt: skip
    return blocks


def serve(args: argparse.Namespace, folder: str) -> None:
    """Load the model and serve the page until a signal; ``folder`` holds uploads and drawings."""
    # A busy port is reported before the model is loaded.
    port = free_port(args.host, args.port)

    # gradio reads these on import. It sends requests to its own server, which no proxy can reach.
    os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_TEMP_DIR": folder, "no_proxy": "*"}
    try:
        import gradio as gr
    except ImportError as error:
        raise ImportError("the page needs gradio: pip install 'salience_detr[web]'") from error

    # PIL refuses images of twice this number, those inside of icons too.
    Image.MAX_IMAGE_PIXELS = MAX_PIXELS // 2
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)

    detector = load_detector(
        args.config_file,
        args.weights,
        device=args.device,
        overrides=args.opts,
        trust_config=args.trust_config,
        image_size=args.image_size,
    )
    model = f"{Path(args.weights).name} · {', '.join(detector.class_names)}"
    page = Page(detector, drawing=drawing_options(args))
    examples = []
    if set(page.names) & set(SURFACE_DEFECT_CLASSES):
        examples = write_examples(Path(folder) / "examples")
    blocks = build_blocks(page, model, examples)

    # Uvicorn prints the traceback of a request that names no event, or a file without a name.
    logging.getLogger("uvicorn.error").addFilter(ServerErrors())

    # The default theme would load its fonts from another server.
    theme = gr.themes.Soft(font=["system-ui", "sans-serif"], font_mono=["monospace"])
    _, address, _ = blocks.launch(
        server_name=args.host, server_port=port, share=False, prevent_thread_lock=True, quiet=True,
        footer_links=[], run_history=False, state_session_capacity=MAX_VISITORS,
        max_file_size=MAX_FILE_BYTES, css=CSS, theme=theme,
    )  # fmt: skip

    # gradio serves in a thread; the signal's KeyboardInterrupt comes here.
    with contextlib.suppress(KeyboardInterrupt):
        print(f"Salience DETR at {address} (Ctrl-C ends it)", flush=True)
        threading.Event().wait()
    print("ended")


def run(args: argparse.Namespace) -> None:
    """Serve the page from a temporary folder."""
    with StopSignals(), tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        serve(args, folder)


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return 0 when a signal ends it, 2 after an error of the user."""
    return run_program(run, parse_args(argv))
