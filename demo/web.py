#!/usr/bin/env python
"""A web page: drop an image, and see what a model finds on it, for any threshold, and where it looks.

    web.py --config-file F --weights W
    web.py --weights model.onnx --port 8000

The page is for this machine's own browser unless --host says otherwise; it loads nothing from elsewhere.
"""

from __future__ import annotations

import argparse
import base64
import html
import json
import os
import socket
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from salience_detr.checkpoint import CheckpointError
from salience_detr.config import ConfigError
from salience_detr.data.images import to_rgb
from salience_detr.detections import Detections
from salience_detr.inference.loading import load_detector
from salience_detr.inference.records import CocoFile, Record
from salience_detr.predictor import Detector
from salience_detr.utils.drawing import class_colors, draw_detections, draw_salience
from salience_detr.utils.errors import one_line
from salience_detr.utils.signals import StopSignals

SHOWN_SIDES = (
    900,
    1600,
)  # the longer side of an image on the page: labels are legible, and it is soon there
COLUMNS = ["class", "score", "x0", "y0", "x1", "y1"]
KEEP_FOR = 3600  # seconds, of uploads, drawings and what is remembered of a visitor
MAX_VISITORS = 200  # that are remembered, with up to 8 MB each

CSS = """
.gradio-container { width: 100% !important; max-width: 1500px !important; margin: auto !important; }
.image img { max-height: 75vh; object-fit: contain !important; }
.facts { opacity: 0.75; }
#summary a { margin: 0; padding: 0; }
.model { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.failure { border-left: 4px solid #d92d20; background: #d92d2018; padding: 10px 14px; border-radius: 4px; }
.legend { display: flex; flex-wrap: wrap; gap: 6px 18px; margin: 8px 0; }
.swatch { display: inline-block; width: 13px; height: 13px; border-radius: 3px; margin-right: 6px; }
"""


@dataclass(frozen=True)
class Seen:
    """A visitor's last image.

    Attributes:
        name: of the file.
        found: the detections, of any score, in the frame of the image.
        shown: (h, w, 3) uint8 RGB, the image in the size that the page shows.
        seconds: that reading and detecting took.
    """

    name: str
    found: Detections
    shown: np.ndarray
    seconds: float


class Page:
    """What the page's parts do. All that belongs to a visitor is handed in and out: many can use it at a time.

    Args:
        detector: that leaves out no detections by their score.
    """

    def __init__(self, detector: Detector) -> None:
        self.detector = detector
        self.names = detector.classes.names
        self.colors = detector.classes.colors or class_colors(len(self.names))

    def look(self, path: str) -> tuple[Seen | str, np.ndarray | None]:
        """Detect on the image in a file: what to remember and the salience to show; or why it cannot be, and None."""
        start, name = time.perf_counter(), Path(path).name
        try:
            image = to_rgb(path)
            output = next(self.detector.stream([image]))
            seconds, shown = time.perf_counter() - start, resize_to_show(image)
            salience = draw_salience(shown, resize_to_show(output.salience))
        except Exception as error:  # whatever one file leads to, the page goes on
            message = one_line(error).replace(path, name)
            print(f"error: {message}", file=sys.stderr, flush=True)
            return message, None
        # What is remembered can read the file, rather than hold an image that may be large.
        found = Detections(output.detections, self.detector.classes, lambda: to_rgb(path))
        return Seen(name, found, shown, seconds), salience

    def show(
        self, seen: Seen | str | None, threshold: float, wanted: Sequence[int]
    ) -> tuple[np.ndarray | None, str, list[list[Any]]]:
        """The image with boxes, the summary as HTML, and the rows of the table.

        Args:
            seen: what :meth:`look` has found, if anything.
            threshold: detections below it are left out.
            wanted: indices of the classes that are shown; no class means all.
        """
        if not isinstance(seen, Seen):
            return (
                None,
                f'<div class="failure" role="alert">{html.escape(seen)}</div>' if seen else "",
                [],
            )
        kept = seen.found[seen.found.scores >= threshold]
        if wanted:
            kept = kept[torch.isin(kept.pred_classes, torch.tensor(wanted))]
        (height, width), (rows, columns) = seen.found.image_size, seen.shown.shape[:2]
        scaled = kept.to("cpu")  # a copy, in the frame of what is shown
        scaled.pred_boxes = kept.pred_boxes.clone()
        scaled.pred_boxes.scale(columns / width, rows / height)
        drawn = draw_detections(seen.shown, scaled, class_names=self.names, colors=self.colors)
        found = zip(kept.labels, kept.scores.tolist(), kept.pred_boxes.tensor.tolist(), strict=True)
        table = [
            [label, round(score, 3), *(round(x, 1) for x in box)] for label, score, box in found
        ]
        return drawn, self.summary(seen, kept), table

    def summary(self, seen: Seen, kept: Detections) -> str:
        """HTML of how much was found, the colors of its classes, and a link to save it."""
        (height, width), name, count = kept.image_size, html.escape(seen.name), len(kept)
        legend = "".join(
            f'<span><span class="swatch" style="background: rgb{self.colors[i]}"></span>'
            f"{html.escape(self.names[i])} ({number})</span>"
            for i, number in sorted(Counter(kept.pred_classes.tolist()).items())
        )
        file = CocoFile(self.detector.classes)
        file.add(Record.of(kept, seen.name))
        content = base64.b64encode(json.dumps(file.content()).encode()).decode()
        return (
            f"<b>{count} detection{'' if count == 1 else 's'}</b> on {name} "
            f'<span class="facts">({width} × {height} pixels, {seen.seconds:.2f} s)</span>'
            f'<div class="legend">{legend}</div>'
            f'<a download="{name}.json" href="data:application/json;base64,{content}">Save as JSON (COCO format)</a>'
        )


def resize_to_show(image: np.ndarray) -> np.ndarray:
    """An image or map, (H, W, ...), with its longer side within :data:`SHOWN_SIDES`."""
    height, width = image.shape[:2]
    longest = max(height, width)
    scale = min(max(longest, SHOWN_SIDES[0]), SHOWN_SIDES[1]) / longest
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)


def build(page: Page, model: str) -> Any:
    """The page's parts, and what moves them; ``model`` says what detects."""
    import gradio as gr

    def drawing(caption: str) -> Any:
        with gr.Column(min_width=280):
            gr.HTML(caption, padding=False)
            return gr.Image(
                format="jpeg",
                interactive=False,
                show_label=False,
                buttons=["fullscreen"],
                elem_classes="image",
            )

    with gr.Blocks(
        title="Salience DETR", analytics_enabled=False, delete_cache=(KEEP_FOR // 6, KEEP_FOR)
    ) as blocks:
        gr.HTML(f'<h1>Salience DETR</h1><div class="facts model">{html.escape(model)}</div>')
        seen = gr.State(None, time_to_live=KEEP_FOR)
        with gr.Row():
            with gr.Column(scale=1, min_width=280):
                file = gr.File(label="Image", height=140, elem_id="upload")
                threshold = gr.Slider(
                    0, 1, value=0.5, step=0.01, label="Lowest score", elem_id="threshold"
                )
                # An empty field, or a number beyond the ends, is no error.
                threshold.preprocess = lambda payload: min(max(payload or 0.0, 0.0), 1.0)  # type: ignore[method-assign]
                choices = [(name, i) for i, name in enumerate(page.names)]
                wanted = gr.Dropdown(
                    choices,
                    multiselect=True,
                    value=[],
                    label="Classes (none: all)",
                    elem_id="classes",
                )
                summary = gr.HTML("Drop an image to see what is found on it.", elem_id="summary")
            with gr.Column(scale=3):
                with gr.Row():
                    boxes = drawing("<b>Detections</b>")
                    salience = drawing("<b>Salience</b>, from purple (none) to yellow (most)")
                table = gr.Dataframe(
                    headers=COLUMNS, interactive=False, label="Boxes in pixels", elem_id="table"
                )
        show: dict[str, Any] = {
            "fn": page.show,
            "inputs": [seen, threshold, wanted],
            "outputs": [boxes, summary, table],
        }
        # One image at a time; those that come meanwhile wait in line.
        looked = file.upload(page.look, file, [seen, salience], trigger_mode="multiple")
        looked.then(**show, concurrency_limit=None).then(lambda: None, None, file)
        for part in (threshold, wanted):
            part.change(
                **show, concurrency_limit=None, trigger_mode="always_last", show_progress="hidden"
            )
    return blocks


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--config-file",
        metavar="FILE",
        help="the LazyConfig file of the model; an export needs none",
    )
    parser.add_argument(
        "--weights",
        required=True,
        metavar="FILE",
        help=".pth, .safetensors, or an .onnx or .pt2 export",
    )
    parser.add_argument(
        "--device", default="auto", help="cpu, cuda, ... (default: a GPU if there is one)"
    )
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen at; 0.0.0.0 is all of this machine's"
    )
    parser.add_argument(
        "--port",
        type=int,
        default=7860,
        help="port to listen at, 0 takes a free one (default: 7860)",
    )
    parser.add_argument("opts", nargs="*", metavar="key=value", help="overrides of the config")
    return parser.parse_intermixed_args(argv)


def free_port(host: str, port: int) -> int:
    """The port, or a free one for 0.

    Raises:
        OSError: nothing can listen there.
    """
    with socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            server.bind((host, port))
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or error
            raise OSError(
                f"cannot listen at {host}, port {port}: {reason}; choose another --port or --host"
            ) from error
        return int(server.getsockname()[1])


def serve(args: argparse.Namespace, folder: str) -> None:
    """Load the model and serve the page until a signal comes.

    Args:
        args: of the command line.
        folder: where uploads and drawings are kept.

    Raises:
        ConfigError, CheckpointError, ExportError: the model cannot be used.
        ImportError: gradio is missing.
        OSError: the address cannot be used.
    """
    port = free_port(args.host, args.port)
    # gradio asks this server whether it runs, which a proxy would not know.
    os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_TEMP_DIR": folder, "no_proxy": "*"}
    try:
        import gradio as gr
    except ImportError as error:
        raise ImportError("the page needs gradio: pip install 'salience_detr[web]'") from error
    detector = load_detector(
        args.config_file, args.weights, device=args.device, overrides=args.opts
    )
    names = detector.class_names
    files = [Path(file).name for file in (args.config_file, args.weights) if file]
    model = " · ".join([*files, f"{len(names)} classes: {', '.join(names)}"])
    blocks = build(Page(detector), model)
    _, address, _ = blocks.launch(
        server_name=args.host,
        server_port=port,
        share=False,
        prevent_thread_lock=True,
        quiet=True,
        footer_links=[],
        run_history=False,
        css=CSS,
        state_session_capacity=MAX_VISITORS,
        theme=gr.themes.Soft(
            font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
        ),
    )
    print(f"Salience DETR at {address} (Ctrl-C ends it)", flush=True)
    threading.Event().wait()


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns 0 when a signal ends it, 2 on a wrong call."""
    args = parse_args(argv)
    with StopSignals(), tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        try:
            serve(args, folder)
        except KeyboardInterrupt:
            print("ended")
        except (CheckpointError, ConfigError, ImportError, OSError, ValueError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
