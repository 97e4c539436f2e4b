"""Export a trained model to ONNX, OpenVINO, torch.export or AOTInductor."""

from __future__ import annotations

import argparse
import statistics
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
from detectron2.config import instantiate
from tabulate import tabulate
from tqdm import tqdm

from salience_detr.benchmark.timing import time_calls
from salience_detr.cli.arguments import run_program
from salience_detr.cli.export_int8 import calibration_images, find_validation, write_int8
from salience_detr.cli.flags.export import parse_args
from salience_detr.config import resolve_device
from salience_detr.data import DatasetError
from salience_detr.data.images import ImageReadError, to_rgb
from salience_detr.data.surface import generate_surface_defects
from salience_detr.export import (
    DetectorInfo,
    ExportedDetector,
    OnnxDetector,
    OpenVinoDetector,
    PackagedDetector,
)
from salience_detr.export.onnx import build_onnx, check_export, export_onnx
from salience_detr.export.openvino import (
    check_openvino,
    file_bytes,
    to_openvino,
    write_openvino,
)
from salience_detr.export.program import compile_package, export_program, save_program
from salience_detr.export.quantization import check_nncf
from salience_detr.export.verification import (
    UNCERTAIN_PART,
    UNCERTAIN_PART_OF_RANDOM,
    Difference,
    verify,
)
from salience_detr.predictor import Predictor
from salience_detr.utils.files import check_result_path


def test_images(predictor: Predictor, count: int = 4) -> tuple[list[np.ndarray], str]:
    """Return images to compare on, with their origin: the test set, or generated ones."""
    try:
        records = instantiate(predictor.config.dataloader.test.dataset)
        chosen = records[:: max(1, len(records) // count)][:count]
        images = [to_rgb(x["file_name"], "RGB", predictor.value_range) for x in chosen]
        return images, "images of the test set"
    except (DatasetError, ImageReadError):
        with tempfile.TemporaryDirectory() as folder:
            generate_surface_defects(Path(folder), split="val", num_images=count, progress=False)
            paths = sorted(Path(folder).rglob("*.jpg"))
            return [to_rgb(path) for path in paths], "generated images"


def several_shapes(images: list[np.ndarray]) -> list[np.ndarray]:
    """Return the images, with the left half and the upper third of the first one."""
    height, width = images[0].shape[:2]
    portrait = images[0][:, : max(1, width // 2)]
    landscape = images[0][: max(1, height // 3)]
    return [*images, portrait, landscape]


def write(predictor: Predictor, args: argparse.Namespace) -> ExportedDetector:
    """Export the model, and load the written file."""
    info = DetectorInfo.from_predictor(predictor)
    if args.int8:
        # Own data can be wrong, too.
        calibration = calibration_images(args.calibration, args.calibration_size)
        validation = find_validation(predictor, args)
    print("exporting the model", flush=True)
    program = export_program(predictor, sampling=args.sampling)

    print(f"writing {args.output}", flush=True)
    if args.output.suffix == ".onnx":
        export_onnx(program, args.output, info, opset=args.opset, simplify=args.simplify)
        return OnnxDetector(args.output, device="cpu")
    if args.output.suffix == ".xml":
        model = build_onnx(program, info, opset=args.opset, simplify=args.simplify)
        if args.int8:
            write_int8(to_openvino(model), info, calibration, validation, args)
        else:
            write_openvino(model, args.output, info)
        return OpenVinoDetector(args.output, device="cpu")
    if args.compile:
        compile_package(program, args.output, info, device=resolve_device(args.device))
    else:
        save_program(program, args.output, info)
    return PackagedDetector(args.output)


def report(
    predictor: Predictor, exported: ExportedDetector, images: list[np.ndarray], origin: str
) -> list[Difference]:
    """Compare the exported model with the predictor, and print tables of differences and times."""
    shapes = several_shapes(images)
    differences = verify(predictor, exported, shapes)
    labels = [f"{x.shape[0]}x{x.shape[1]}" for x in shapes]
    labels += [f"{label} in a batch" for label in labels]

    rows = []
    for label, difference in zip(labels, differences, strict=True):
        row = {
            "image": label,
            "detections": difference.detections,
            "not in both": difference.unmatched,
            "their highest score": difference.unmatched_score,
            "largest difference of scores": difference.score,
            "of boxes (px)": difference.box,
        }
        rows.append(row)
    print(f"\nagainst PyTorch on {origin}:")
    formats = ("", "", "", ".3f", ".1e", ".1e")
    print(tabulate(rows, headers="keys", floatfmt=formats, tablefmt="github"))

    times = []
    detectors = {"PyTorch": predictor, type(exported).__name__: exported}
    for name, detector in tqdm(detectors.items(), desc="timing"):
        # The first of the detections warms up.
        milliseconds = time_calls(partial(detector, images[0]), 6)[1:]
        times.append((name, statistics.median(milliseconds)))

    print(f"\none image of {labels[0]}, reading and resizing included, median of 5:")
    print(tabulate(times, headers=("", "ms"), floatfmt=".1f", tablefmt="github"))
    return differences


def run(args: argparse.Namespace) -> int:
    """Export and verify; return 1 if the exported model detects something else."""
    # Everything that can be wrong with the arguments, before the work of minutes.
    check_result_path(args.output, "--output")
    resolve_device(args.device)
    if args.output.suffix == ".xml":
        check_openvino()
    if args.int8:
        check_nncf()
    if args.output.suffix in (".onnx", ".xml"):
        check_export(args.opset)
    predictor = Predictor(
        args.config_file,
        args.weights,
        device="cpu",
        overrides=args.opts,
        trust_config=args.trust_config,
        image_size=args.image_size,
    )
    images = [to_rgb(path, "RGB", predictor.value_range) for path in args.verify or []]
    origin = "the given images"

    exported = write(predictor, args)
    mebibytes = file_bytes(args.output) / 2**20
    print(f"{args.output}: {mebibytes:.1f} MiB, {len(exported.class_names)} classes")
    if args.verify is None:
        return 0

    if not images:
        images, origin = test_images(predictor)
    differences = report(predictor, exported, images, origin)

    score = max(x.score for x in differences)
    box = max(x.box for x in differences)
    unmatched = sum(x.unmatched for x in differences)
    largest = f"largest differences: {score:.1e} in score, {box:.1e} px in boxes"
    print(f"\n{largest}; {unmatched} detections differ")

    # What int8 changes is more than rounding; AP says what it costs.
    if args.int8:
        return 0

    # Random weights rank many tokens nearly equal, so that rounding decides more of them.
    uncertain_part = UNCERTAIN_PART if args.weights else UNCERTAIN_PART_OF_RANDOM
    is_rounding = all(x.is_rounding(uncertain_part=uncertain_part) for x in differences)
    return 0 if is_rounding else 1


def main(argv: list[str] | None = None) -> int:
    return run_program(run, parse_args(argv))
