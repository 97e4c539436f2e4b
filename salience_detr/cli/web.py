"""Web page that shows the detections and the salience of an image that is dropped on it.

Its components and its server; web_page.py has the functions behind them.
"""

from __future__ import annotations

import argparse
import contextlib
import html
import logging
import os
import tempfile
import threading
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from salience_detr.cli.arguments import run_program
from salience_detr.cli.flags.web import parse_args
from salience_detr.cli.web_page import MAX_PIXELS, Page
from salience_detr.cli.web_server import ServerErrors, free_port
from salience_detr.cli.web_video import KEEP_SECONDS
from salience_detr.data.surface import SURFACE_DEFECT_CLASSES, generate_surface_defects
from salience_detr.inference.loading import load_detector
from salience_detr.utils.drawing_options import drawing_options
from salience_detr.utils.errors import one_line, print_error
from salience_detr.utils.signals import StopSignals

if TYPE_CHECKING:
    import gradio

MAX_FILE_BYTES = 200 * 2**20  # of an upload
COLUMNS = ["class", "score", "x0", "y0", "x1", "y1"]
MAX_VISITORS = 200  # maximum number of visitors whose state is kept, up to 8 MB each

# A tall image must not push the table off the screen.
CSS = ".image img { max-height: 75vh; object-fit: contain !important; }"

TILES = [("none", 0), ("320 pixels", 320), ("640 pixels", 640), ("1024 pixels", 1024)]
NUM_EXAMPLES = 3
EXAMPLE_SEED = 1


def write_examples(folder: Path) -> list[str]:
    """Write a few small images of generated surface defects, and return their paths."""
    generate_surface_defects(
        folder, split="val", num_images=NUM_EXAMPLES, seed=EXAMPLE_SEED, progress=False
    )
    return sorted(str(path) for path in folder.rglob("*.jpg"))


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
                best = gr.Checkbox(
                    label="Best score threshold of each class, as stored in the weights",
                    visible=page.has_best,
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

        inputs = [seen, threshold, wanted, best]
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

        film_inputs = [film, threshold, tile, best]
        watched = film.upload(page.watch, film_inputs, [played, summary, files], **one)
        watched.then(lambda: None, None, film)

        # The emptied field accepts the next image.
        shown.then(lambda: None, None, file)

        # A moving slider causes many events; only the last one matters.
        gr.on(
            [threshold.change, wanted.change, best.change], page.show, inputs, outputs,
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
        optimize=args.optimize,
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
