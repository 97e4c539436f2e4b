"""Detect objects on images and videos, and draw the detections."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from detectron2.utils import comm

from salience_detr.cli.arguments import INTERRUPTED, print_skipped, run_program
from salience_detr.cli.flags.predict import parse_args
from salience_detr.config import resolve_device
from salience_detr.detector import Detector
from salience_detr.inference.class_filter import only_classes
from salience_detr.inference.detection_run import DetectionRun, Ending, Summary
from salience_detr.inference.distributed import join_torchrun, run_distributed
from salience_detr.inference.inputs import Inputs, collect_inputs, is_video
from salience_detr.inference.live import LiveSource, find_live_source
from salience_detr.inference.loading import load_detector
from salience_detr.inference.outputs import OutputFolder
from salience_detr.inference.result_files import ResultFiles, earlier_parts
from salience_detr.inference.sources import resolve_words
from salience_detr.inference.tiling import TiledDetector
from salience_detr.inference.tracking import MIN_SCORE, Tracker
from salience_detr.utils.drawing_options import drawing_options
from salience_detr.utils.files import check_output_dir, check_result_path
from salience_detr.utils.signals import StopSignals


def build_detector(args: argparse.Namespace) -> Detector:
    """Build the detector that the arguments ask for."""
    # Batches save little time on a CPU.
    batch_size = args.batch_size
    if batch_size is None:
        batch_size = 1 if resolve_device(args.device).type == "cpu" else 4

    model = load_detector(
        args.config_file,
        args.weights,
        device=args.device,
        dtype=args.dtype,
        score_threshold=args.score_threshold,
        batch_size=batch_size,
        overrides=args.opts,
        trust_config=args.trust_config,
        image_size=args.image_size,
        ignore_class_names=args.ignore_class_names,
        optimize=args.optimize,
    )

    # A tracker needs detections of low scores to continue its tracks.
    if args.track:
        model.score_thresholds = model.score_thresholds.clamp(max=MIN_SCORE)

    # Classes are filtered on each tile, where the limit of detections applies.
    detector: Detector = model
    if args.classes:
        detector = only_classes(detector, args.classes)
    if args.tile is not None:
        overlap = 0.2
        if args.tile_overlap is not None:
            overlap = args.tile_overlap

        detector = TiledDetector(
            detector,
            tile=args.tile,
            overlap=overlap,
            with_whole=not args.tiles_only,
            progress=find_live(args) is None,
        )
    return detector


def find_live(args: argparse.Namespace) -> LiveSource | None:
    """Return the camera or stream that the arguments name, None for files.

    Raises:
        ValueError: there are other inputs besides.
    """
    if args.webcam is not None:
        return LiveSource(args.webcam)
    return find_live_source(args.input, args.stream_timeout)


def find_inputs(args: argparse.Namespace, live: LiveSource | None) -> Inputs:
    """Return the inputs, and print what lies beside them.

    Raises:
        OSError, ValueError: there is no input.
    """
    # A camera or stream has the name of its video as its input.
    if live is not None:
        return Inputs([live.path], missing=[], remarks=[])

    words = resolve_words(args.input, args.output)
    if not words.patterns and not words.listed:
        raise FileNotFoundError("; ".join(words.missing))
    inputs = collect_inputs(words.patterns, words.listed)
    for remark in inputs.remarks:
        if comm.is_main_process():
            print(remark, file=sys.stderr)
    return replace(inputs, missing=words.missing + inputs.missing)


def labeling_names(inputs: Inputs) -> dict[str, str]:
    """Return the name of each input in a labeling tool: its path in the folder of the inputs."""
    names = {}
    for path in inputs.files:
        names[str(path)] = inputs.names.get(path, Path(path.name)).as_posix()
    return names


def check_labeling_names(inputs: Inputs) -> None:
    """Raise ValueError unless --pre-annotations has images, each with a name of its own."""
    paths: dict[str, str] = {}
    for path, name in labeling_names(inputs).items():
        if is_video(Path(path)):
            continue
        if name in paths:
            raise ValueError(
                f"--pre-annotations: {paths[name]} and {path} would both be called {name}; give "
                "--input the folder that holds both"
            )
        paths[name] = path

    if not paths:
        raise ValueError("--pre-annotations are of images, and there is none among the inputs")
    num_videos = len(inputs.files) - len(paths)
    if num_videos and comm.is_main_process():
        print(f"--pre-annotations leaves out {num_videos} videos", file=sys.stderr)


def prepare(args: argparse.Namespace) -> tuple[Inputs, LiveSource | None, Detector]:
    """Return the inputs, the camera or stream if it is one, and the detector.

    Raises:
        USER_ERRORS: there is no input, an output cannot be written, or no detector can be built.
    """
    live = find_live(args)
    inputs = find_inputs(args, live)

    # Errors are reported now, rather than after hours of detection.
    check_output_dir(args.output, option="--output")
    check_result_path(args.json, "--json")
    check_result_path(args.csv, "--csv")
    check_result_path(args.pre_annotations, "--pre-annotations")
    if args.pre_annotations is not None:
        check_labeling_names(inputs)
    if args.track:
        Tracker(fps=25, score_threshold=0.5)  # its package may be missing

    return inputs, live, build_detector(args)


def run(args: argparse.Namespace) -> int:
    """Detect on all inputs in this process, or with torchrun's others, and report.

    Returns:
        0 after detection on at least one input, 1 if no input could be read or an output could not
        be written, 130 after an interruption.

    Raises:
        USER_ERRORS: see :func:`prepare` and :func:`run_distributed`.
    """
    with join_torchrun(), StopSignals() as stop_signals:
        options = drawing_options(args)
        inputs, live, detector = prepare(args)
        options.palette(detector.class_names)  # tells an unknown class before the work

        # Only the parts of an earlier run exist at this point.
        parts = earlier_parts(args.json, args.csv, args.pre_annotations)
        if parts and comm.is_main_process():
            print("left by an earlier run that was killed:", *parts, file=sys.stderr)

        folder = OutputFolder(
            args.output, detector.classes, salience=args.salience, crops=args.save_crops
        )
        detection_run = DetectionRun(
            detector,
            folder,
            folder.plan(inputs.files, inputs.names),
            ResultFiles(
                detector.classes, args.json, args.csv, args.pre_annotations, labeling_names(inputs)
            ),
            stop_signals,
            score_thresholds=detector.class_thresholds(args.score_threshold),
            track=args.track,
            drawing=options,
            num_threads=min(4, os.cpu_count() or 1),
            show_progress=comm.is_main_process(),
        )
        summary = run_distributed(detection_run, live=live)

    # Under torchrun, only the first process reports.
    return 0 if summary is None else report(summary, inputs.missing, args)


def report(summary: Summary, missing: Sequence[str], args: argparse.Namespace) -> int:
    """Print the numbers of a run, its outputs and its problems, and return the exit code."""
    counts = f"{summary.num_detections} detections on {summary.num_images} images"
    print(f"{counts}, drawn in {args.output}")
    if summary.num_images and not summary.num_detections and args.score_threshold != 0:
        remedy = "lower --score-threshold, or use --score-threshold best"
        print(f"no score reaches {args.score_threshold}; {remedy}", file=sys.stderr)
    for path in filter(None, (args.json, args.csv, args.pre_annotations)):
        print(f"detections written to {path}")

    if summary.other_codecs:
        print(describe_codecs(summary.other_codecs), file=sys.stderr)
    for warning in summary.warnings.values():
        print(warning, file=sys.stderr)
    print_skipped([*missing, *summary.failures.values()])

    if summary.ending == Ending.INTERRUPTED:
        print(INTERRUPTED, file=sys.stderr)
        return 130
    return 0 if summary.num_completed and summary.ending == Ending.DONE else 1


def describe_codecs(other_codecs: Mapping[Path, str]) -> str:
    """Describe in one line the videos that browsers do not play, and the remedy."""
    path, codec = next(iter(other_codecs.items()))
    others = ""
    if len(other_codecs) > 1:
        others = f" (as are {len(other_codecs) - 1} others)"

    # An .avi has the ending of its input, or an odd size, which H.264 does not have.
    remedy = "pip install 'salience_detr[video]' adds H.264"
    if path.suffix.lower() == ".avi":
        remedy = "H.264 is written for .mp4 inputs of even size"
    return (
        f"{path}{others} is {codec}, which browsers do not play; {remedy}, and this converts it: "
        f"ffmpeg -i {path} -vf 'pad=ceil(iw/2)*2:ceil(ih/2)*2' -pix_fmt yuv420p "
        f"{path.with_name(path.stem + '_h264.mp4')}"
    )


def main(argv: list[str] | None = None) -> int:
    return run_program(run, parse_args(argv))
