#!/usr/bin/env python
"""Detect objects on images and videos, and draw what was found.

    demo.py --config-file F --weights W --input a.jpg folder 'shots/*.png' film.mp4 --output out
    demo.py --config-file F --weights W --input film.mp4 --output out --track --csv found.csv
    demo.py --config-file F --weights W --input large.tif --output out --tile 640 --save-crops --classes scratch pit
    demo.py --config-file F --weights W --webcam 0 --output out
    demo.py --weights model.onnx --input a.jpg --output out
    torchrun --nproc-per-node 4 demo.py ...        the processes share the inputs out among themselves

The file that --json writes is in COCO's format: images, categories, and annotations with bbox (x, y, width, height),
category_id of the data set, score, and track_id where there is one; each frame of a video is an image of its own. The
file that --csv writes has a row for each detection. Frames are counted from 0.
"""

from __future__ import annotations

import argparse
import os
import sys
from functools import partial
from pathlib import Path

from salience_detr.checkpoint import CheckpointError
from salience_detr.config import ConfigError, is_override, resolve_device
from salience_detr.inference.class_filter import only_classes
from salience_detr.inference.detection_run import DetectionRun, Ending, Job
from salience_detr.inference.inputs import collect_inputs
from salience_detr.inference.loading import load_detector
from salience_detr.inference.outputs import OutputFolder
from salience_detr.inference.records import Results
from salience_detr.inference.sharing import record_together, started_by_torchrun
from salience_detr.inference.tiling import TiledDetector
from salience_detr.inference.tracking import MIN_SCORE, Tracker, TrackingUnavailableError
from salience_detr.predictor import Detector
from salience_detr.utils.files import check_output_dir, check_result_path
from salience_detr.utils.signals import StopSignals


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", metavar="FILE", help="the LazyConfig file of a checkpoint")
    parser.add_argument(
        "--weights",
        required=True,
        metavar="FILE",
        help="a checkpoint (.pth, .safetensors) or an exported model (.onnx, .pt2)",
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--input", nargs="+", metavar="PATH", help="images, videos, folders or patterns"
    )
    source.add_argument(
        "--webcam", type=int, metavar="N", help="number of a camera; frames are dropped to keep up"
    )
    parser.add_argument(
        "--output", required=True, type=Path, metavar="DIR", help="where drawings go"
    )
    parser.add_argument(
        "--score-threshold",
        type=float,
        default=0.5,
        help="leave out detections below (default: 0.5)",
    )
    parser.add_argument(
        "--classes",
        nargs="+",
        metavar="CLASS",
        help="only these: names, or category ids of the data set",
    )
    parser.add_argument(
        "--tile", type=int, metavar="SIZE", help="detect on overlapping squares of so many pixels"
    )
    parser.add_argument(
        "--tile-overlap", type=float, metavar="PART", help="of neighboring tiles (default: 0.2)"
    )
    parser.add_argument(
        "--tiles-only", action="store_true", help="do not look at the whole image besides"
    )
    parser.add_argument("--track", action="store_true", help="number the objects of a video")
    parser.add_argument(
        "--salience", action="store_true", help="write salience maps too, as NAME_salience.*"
    )
    parser.add_argument(
        "--save-crops", action="store_true", help="cut detections out, as crops/CLASS/NAME_K.jpg"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all detections here")
    parser.add_argument(
        "--csv", type=Path, metavar="FILE", help="write all detections here, too, as they come"
    )
    parser.add_argument(
        "--device", default="auto", help="cpu, cuda, ... (default: a GPU if there is one)"
    )
    parser.add_argument(
        "--dtype", default="float32", help="float32, bfloat16 or float16 (default: float32)"
    )
    parser.add_argument(
        "--batch-size",
        type=int,
        metavar="N",
        help="images computed together (default: 4 on a GPU, 1 on a CPU)",
    )
    parser.add_argument("opts", nargs="*", metavar="key=value", help="overrides of the config")
    args = parser.parse_intermixed_args(argv)
    # A list of paths or classes swallows the overrides that follow it.
    for name in ("input", "classes"):
        words = getattr(args, name)
        if words:
            args.opts += [x for x in words if is_override(x)]
            setattr(args, name, [x for x in words if not is_override(x)])
            if not getattr(args, name):
                parser.error(
                    f"--{name} needs at least one {'path' if name == 'input' else 'class'}"
                )
    if args.tile is None and (args.tiles_only or args.tile_overlap is not None):
        parser.error("--tile-overlap and --tiles-only need --tile SIZE")
    return args


def build_detector(args: argparse.Namespace) -> Detector:
    """What detects, as the arguments say."""
    default_batch = 1 if resolve_device(args.device).type == "cpu" else 4
    detector = load_detector(
        args.config_file,
        args.weights,
        device=args.device,
        dtype=args.dtype,
        # Tracking goes on with objects that are less sure for a while.
        score_threshold=min(args.score_threshold, MIN_SCORE)
        if args.track
        else args.score_threshold,
        batch_size=default_batch if args.batch_size is None else args.batch_size,
        overrides=args.opts,
    )
    if args.classes:
        detector = only_classes(detector, args.classes)
    if args.tile is not None:
        overlap = 0.2 if args.tile_overlap is None else args.tile_overlap
        whole, progress = not args.tiles_only, bool(args.input)
        detector = TiledDetector(
            detector, tile=args.tile, overlap=overlap, with_whole=whole, progress=progress
        )
    return detector


def prepare(args: argparse.Namespace) -> tuple[list[Path], list[str], Detector]:
    """The inputs, a message for each that is missing, and the detector; outputs are tried, too, before any work."""
    if args.input:
        sources, missing = collect_inputs(args.input)
    else:
        sources, missing = [Path(f"webcam{args.webcam}.mp4")], []
    if not sources:
        raise FileNotFoundError("; ".join(missing))
    check_output_dir(args.output, option="--output")
    check_result_path(args.json, "--json")
    check_result_path(args.csv, "--csv")
    if args.track:
        Tracker(fps=25, score_threshold=args.score_threshold)
    return sources, missing, build_detector(args)


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns 0 if anything was detected on, 1 if nothing could be read, 2 on a wrong call."""
    args = parse_args(argv)
    with started_by_torchrun() as processes:
        try:
            sources, missing, detector = prepare(args)
        except (
            CheckpointError,
            ConfigError,
            OSError,
            ValueError,
            TrackingUnavailableError,
        ) as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        results = Results(detector.classes, args.json, args.csv, failures=missing)
        folder = OutputFolder(
            args.output, detector.classes, salience=args.salience, crops=args.save_crops
        )
        targets = folder.plan(sources)
        jobs = [Job(i, *places) for i, places in enumerate(zip(sources, targets, strict=True))]
        with StopSignals() as stops:
            run = DetectionRun(
                detector,
                folder,
                score_threshold=args.score_threshold,
                make_tracker=partial(Tracker, score_threshold=args.score_threshold)
                if args.track
                else None,
                stops=stops,
                num_threads=min(4, os.cpu_count() or 1),
                show_progress=processes.is_first,
            )
            work = partial(run.work, processes.share(jobs), camera=args.webcam)
            try:
                ending = record_together(work, results, args.output, processes)
            except OSError as error:
                print(f"error: cannot write the results: {error}", file=sys.stderr)
                return 2
            return processes.agree(report(results, args, ending) if results.are_written else 0)


def report(results: Results, args: argparse.Namespace, ending: Ending) -> int:
    """Print what was done and what was not; the exit code."""
    print(
        f"{results.num_detections} detections on {results.num_images} images, drawn in {args.output}"
    )
    for path in filter(None, (args.json, args.csv)):
        print(f"detections written to {path}")
    for note in results.notes:
        print(note, file=sys.stderr)
    if results.failures:
        print(
            f"{len(results.failures)} inputs were passed over:",
            *results.failures,
            sep="\n  ",
            file=sys.stderr,
        )
    if ending == Ending.INTERRUPTED:
        print("interrupted: what was done until then is written", file=sys.stderr)
        return 130
    return 0 if results.succeeded and ending == Ending.DONE else 1


if __name__ == "__main__":
    sys.exit(main())
