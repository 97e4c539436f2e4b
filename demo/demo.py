#!/usr/bin/env python
"""Detect objects on pictures and videos, and draw what was found.

    demo.py --config-file F --weights W --input a.jpg folder 'shots/*.png' film.mp4 --output out
    demo.py --config-file F --weights W --webcam 0 --output out

The file that --json writes is in COCO's format: images, categories, and annotations with bbox (x, y, width, height),
category_id of the data set, and score; each frame of a video is an image of its own.
"""

from __future__ import annotations

import argparse
import contextlib
import glob
import json
import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from tqdm import tqdm

from salience_detr.checkpoint import CheckpointError
from salience_detr.data.mapper import ImageReadError, read_image
from salience_detr.detections import Detection
from salience_detr.engine.checkpointing import check_output_dir
from salience_detr.engine.config import ConfigError
from salience_detr.files import written_whole
from salience_detr.predictor import Predictor
from salience_detr.video import VIDEO_ENDINGS, VideoError, VideoReader, VideoWriter, output_ending
from salience_detr.visualization import class_colors, draw_detections, draw_salience

PICTURE_ENDINGS = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm"}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", required=True, metavar="FILE", help="the LazyConfig file of the model")
    parser.add_argument("--weights", required=True, metavar="FILE", help=".pth or .safetensors")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--input", nargs="+", metavar="PATH", help="pictures, videos, folders or patterns")
    source.add_argument("--webcam", type=int, metavar="N", help="number of a camera")
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="where drawings go")
    parser.add_argument("--score-threshold", type=float, default=0.5, help="leave out detections below (default: 0.5)")
    parser.add_argument("--salience", action="store_true", help="write salience maps too, as NAME_salience.*")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all detections here")
    parser.add_argument("--device", default="auto", help="cpu, cuda, ... (default: a GPU if there is one)")
    parser.add_argument("opts", nargs="*", metavar="key=value", help="overrides of the config")
    args = parser.parse_intermixed_args(argv)
    # After --input a list of paths swallows the overrides that follow it.
    if args.input:
        args.opts += [x for x in args.input if is_override(x)]
        args.input = [x for x in args.input if not is_override(x)]
        if not args.input:
            parser.error("--input needs at least one path")
    return args


def is_override(argument: str) -> bool:
    """Whether a word is key=value rather than a path."""
    return "=" in argument and not os.path.exists(argument) and "/" not in argument.partition("=")[0]


def collect_inputs(patterns: list[str]) -> tuple[list[Path], list[str]]:
    """The files that paths, folders (searched through) and patterns stand for, each once, in order.

    Returns:
        The files, and a message for each pattern that nothing fits.
    """
    endings = PICTURE_ENDINGS | VIDEO_ENDINGS
    files: list[Path] = []
    missing: list[str] = []
    for pattern in patterns:
        path = Path(pattern)
        if path.is_dir():
            found = sorted(p for p in path.rglob("*") if p.suffix.lower() in endings and p.is_file())
        elif path.is_file():
            found = [path]
        else:
            found = [Path(name) for name in sorted(glob.glob(pattern, recursive=True)) if os.path.isfile(name)]
        if not found:
            missing.append(f"--input {pattern}: there is no such picture, video, folder or match")
        files += found
    return list(dict.fromkeys(files)), missing


class StopSignals:
    """SIGINT, SIGTERM and SIGHUP become KeyboardInterrupt: at once, or after what must be whole."""

    def __init__(self) -> None:
        self.held_back = self.came = False

    def listen(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            # A shell makes what it starts in the background deaf to SIGINT; nohup means what it does.
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, self.handle)

    def handle(self, number: int, frame: Any) -> None:
        if not self.held_back or self.came:  # a second one ends even a write that hangs
            raise KeyboardInterrupt
        self.came = True

    @contextlib.contextmanager
    def after_this(self) -> Iterator[None]:
        """Hold a signal back until the body is done."""
        self.held_back = True
        try:
            yield
        finally:
            self.held_back = False
        if self.came:
            raise KeyboardInterrupt


@dataclass
class Run:
    """What a run makes: drawings in ``output``, records of all detections, and the inputs that failed.

    A drawing is written and recorded under ``stops.after_this()``, so that both or neither are there.
    ``taken`` are paths that no drawing may have: those of the inputs, and those of other drawings.
    """

    predictor: Predictor
    output: Path
    salience: bool
    images: list[dict[str, Any]] = field(default_factory=list)
    annotations: list[dict[str, Any]] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    succeeded: int = 0
    taken: set[Path] = field(default_factory=set)
    stops: StopSignals = field(default_factory=StopSignals)

    def __post_init__(self) -> None:
        names, metadata = self.predictor.class_names, self.predictor.metadata
        self.colors = class_colors(len(names), metadata.get("thing_colors"))
        to_contiguous = metadata.get("thing_dataset_id_to_contiguous_id") or {i: i for i in range(len(names))}
        self.dataset_ids = {contiguous: dataset_id for dataset_id, contiguous in to_contiguous.items()}

    def output_paths(self, source: Path, suffix: str | None = None) -> tuple[Path, Path]:
        """Paths in the output folder, named like the source, for the drawing and for its salience map.

        A number is added where the name is taken.
        """
        ending = suffix or (source.suffix if source.suffix.lower() in PICTURE_ENDINGS - {".webp", ".pgm"} else ".png")
        stem, number = source.stem, 1
        while True:
            paths = (self.output / f"{stem}{ending}", self.output / f"{stem}_salience{ending}")
            resolved = {path.resolve() for path in (paths if self.salience else paths[:1])}
            if not resolved & self.taken:
                self.taken |= resolved
                return paths
            number += 1
            stem = f"{source.stem}_{number}"

    def draw(self, image: np.ndarray, detection: Detection) -> np.ndarray:
        return draw_detections(image, detection.instances, class_names=self.predictor.class_names, colors=self.colors)

    def record(self, image: np.ndarray, detection: Detection, file_name: str, frame: int | None = None) -> None:
        """Keep the detections of a picture or frame for the JSON file."""
        image_id = len(self.images) + 1
        entry = {"id": image_id, "file_name": file_name, "height": image.shape[0], "width": image.shape[1]}
        self.images.append(entry if frame is None else entry | {"frame": frame})
        instances = detection.instances
        for (x0, y0, x1, y1), score, label in zip(
            instances.pred_boxes.tensor.tolist(),
            instances.scores.tolist(),
            instances.pred_classes.tolist(),
            strict=True,
        ):
            box = {"bbox": [x0, y0, x1 - x0, y1 - y0], "area": (x1 - x0) * (y1 - y0), "score": score, "iscrowd": 0}
            ids = {"id": len(self.annotations) + 1, "image_id": image_id}
            self.annotations.append(ids | {"category_id": self.dataset_ids.get(label, label)} | box)

    def content(self) -> dict[str, Any]:
        """The content of the JSON file."""
        names = self.predictor.class_names
        categories = [{"id": self.dataset_ids.get(i, i), "name": name} for i, name in enumerate(names)]
        return {"info": {}, "images": self.images, "annotations": self.annotations, "categories": categories}


def run_picture(run: Run, path: Path) -> None:
    """Detect on one picture and write its drawings."""
    image = read_image(str(path))
    detection = run.predictor.detect([image])[0]
    drawing, salience = run.output_paths(path)
    with run.stops.after_this():
        write_picture(drawing, run.draw(image, detection))
        if run.salience:
            write_picture(salience, draw_salience(image, detection.salience))
        run.record(image, detection, str(path))


def run_video(run: Run, source: Path | int) -> None:
    """Detect on all frames of a video or camera; what is written so far survives an interruption."""
    reader = VideoReader(source)
    name = source if isinstance(source, Path) else Path(f"webcam{source}.mp4")
    drawing, map_path = run.output_paths(name, output_ending(name, reader.size))
    count = 0
    with VideoWriter(drawing, fps=reader.fps) as video, VideoWriter(map_path, fps=reader.fps) as salience:
        try:
            for image in tqdm(reader, total=reader.num_frames, desc=name.name, unit="frame"):
                detection = run.predictor.detect([image])[0]
                with run.stops.after_this():
                    video.write(run.draw(image, detection))
                    if run.salience:
                        salience.write(draw_salience(image, detection.salience))
                    run.record(image, detection, str(name), count)
                count += 1
        finally:
            reader.close()
    if count == 0:
        raise VideoError(f"no frame of the video {name} can be decoded")
    if reader.num_frames and count < 0.9 * reader.num_frames:
        run.notes.append(f"the video {name} breaks off: of {reader.num_frames} frames {count} can be decoded")


def write_picture(path: Path, image: np.ndarray) -> None:
    """Write an (H, W, 3) RGB picture."""
    if not cv2.imwrite(str(path), np.ascontiguousarray(image[..., ::-1])):
        raise OSError(f"cannot write the picture {path}")


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON file whole or not at all."""
    with written_whole(path) as temporary:
        temporary.write_text(json.dumps(content))


def run_inputs(run: Run, files: list[Path]) -> None:
    """Work through files; those that cannot be read are noted and passed over."""
    bar = tqdm(
        files, unit="image", desc="detecting", disable=len(files) == 1 and files[0].suffix.lower() in VIDEO_ENDINGS
    )
    for path in bar:
        try:
            run_video(run, path) if path.suffix.lower() in VIDEO_ENDINGS else run_picture(run, path)
            run.succeeded += 1
        except (ImageReadError, VideoError) as error:
            run.failed.append(str(error))
        except (RuntimeError, ValueError, MemoryError, cv2.error) as error:  # too large for the memory, for example
            run.failed.append(f"cannot detect on {path}: {' '.join(str(error).split()) or type(error).__name__}")


def check_json_path(path: Path) -> None:
    """Find out before the work whether its result can be written.

    Raises:
        OSError: it cannot.
    """
    check_output_dir(path.parent, option="--json")
    if path.is_dir():
        raise OSError(f"--json {path} is a folder; name a file")


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns 0 if anything was detected on, 1 if nothing could be read, 2 on a wrong call."""
    args = parse_args(argv)
    try:
        files, missing = collect_inputs(args.input or [])
        if args.input and not files:
            raise FileNotFoundError("; ".join(missing))
        check_output_dir(args.output, option="--output")
        if args.json:
            check_json_path(args.json)
        predictor = Predictor(
            args.config_file,
            args.weights,
            device=args.device,
            score_threshold=args.score_threshold,
            overrides=args.opts,
        )
    except (CheckpointError, ConfigError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    run = Run(predictor, args.output, args.salience, failed=missing, taken={path.resolve() for path in files})
    run.stops.listen()
    interrupted = False
    try:
        if files:
            run_inputs(run, files)
        else:
            run_video(run, args.webcam)
            run.succeeded += 1
    except KeyboardInterrupt:
        interrupted = True
    except VideoError as error:
        run.failed.append(str(error))
    except OSError as error:
        run.failed.append(str(error))
        run.succeeded = 0  # the output cannot be written: what is there is not all
    if args.json:
        try:
            write_json(args.json, run.content())
        except OSError as error:
            print(f"error: cannot write {args.json}: {error.strerror or error}", file=sys.stderr)
            return 2
    return report(run, args, interrupted)


def report(run: Run, args: argparse.Namespace, interrupted: bool) -> int:
    """Print what was done and what was not; the exit code."""
    print(f"{len(run.annotations)} detections on {len(run.images)} images, drawn in {args.output}")
    if args.json:
        print(f"detections written to {args.json}")
    for note in run.notes:
        print(note, file=sys.stderr)
    if run.failed:
        print(f"{len(run.failed)} inputs were passed over:", *run.failed, sep="\n  ", file=sys.stderr)
    if interrupted:
        print("interrupted: what was done until then is written", file=sys.stderr)
        return 130
    return 0 if run.succeeded else 1


if __name__ == "__main__":
    sys.exit(main())
