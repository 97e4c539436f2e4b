"""Draw what happens inside a model on images."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from salience_detr.cli.arguments import (
    INTERRUPTED,
    print_skipped,
    run_program,
)
from salience_detr.cli.flags.visualize_model import ENDINGS, parse_args
from salience_detr.data.images import ImageReadError, to_rgb
from salience_detr.inference.inputs import collect_inputs, is_video
from salience_detr.predictor import Predictor
from salience_detr.utils.errors import one_line
from salience_detr.utils.files import UsedPaths, check_output_dir, write_image
from salience_detr.visualization import (
    QueryStatistics,
    StageOutputs,
    class_activation,
    draw_attribution,
    draw_proposals,
    draw_salience_levels,
    draw_sampling_points,
    draw_selected_tokens,
    inspect,
    plot_query_statistics,
)


def write_drawings(
    folder: Path, stem: str, drawings: dict[str, np.ndarray], used: UsedPaths
) -> None:
    """Write (H, W, 3) RGB drawings by their endings; all get the same number if one is taken."""

    def paths_of(stem: str) -> list[Path]:
        return [folder / f"{stem}{ending}" for ending in drawings]

    paths = paths_of(used.unused_stem(stem, paths_of))
    for path, drawing in zip(paths, drawings.values(), strict=True):
        write_image(path, drawing)


def draw_parts(
    predictor: Predictor, image: np.ndarray, parts: list[str], query: int | None
) -> tuple[dict[str, np.ndarray], QueryStatistics | None]:
    """Draw the parts of an (H, W, 3) RGB image, by the endings of their files.

    Returns:
        The drawings, and the statistics of the queries if they are one of the parts.
    """
    draw: dict[str, Callable[[StageOutputs], np.ndarray]] = {
        "salience": draw_salience_levels,
        "tokens": draw_selected_tokens,
        "proposals": draw_proposals,
        "sampling": lambda outputs: draw_sampling_points(outputs, query),
    }
    drawings = {}
    statistics = None

    # One run of the model is enough for all parts but the attribution, which needs gradients.
    if set(parts) != {"cam"}:
        outputs = inspect(predictor, image)
        for part in set(draw).intersection(parts):
            drawings[ENDINGS[part]] = draw[part](outputs)
        if "queries" in parts:
            statistics = QueryStatistics.of(outputs)

    if "cam" in parts:
        queries = None if query is None else [query]
        attributions = class_activation(predictor, image, queries=queries)
        drawings[ENDINGS["cam"]] = draw_attribution(attributions)
    return drawings, statistics


def find_images(patterns: list[str]) -> tuple[list[Path], list[str]]:
    """Return the images that the arguments name, and a message for each other input.

    Raises:
        OSError: there is no image.
    """
    inputs = collect_inputs(patterns)
    notes = [*inputs.missing, *inputs.remarks]

    images = []
    for path in inputs.files:
        if is_video(path):
            notes.append(f"{path} is a video; demo/demo.py takes those")
        else:
            images.append(path)

    if not images:
        raise FileNotFoundError("; ".join(notes))
    return images, notes


def visualize(
    predictor: Predictor, images: list[Path], args: argparse.Namespace, notes: list[str]
) -> tuple[int, bool]:
    """Draw the images; ``notes`` get a message for each that cannot be drawn.

    Returns:
        The number of images drawn, and True if Ctrl-C has ended the work early. The statistics
        are then those of the images drawn until then.

    Raises:
        OSError: a drawing cannot be written.
    """
    # Neither inputs nor earlier drawings are overwritten.
    used = UsedPaths(images)
    num_drawn = 0
    interrupted = False
    statistics = []
    try:
        for path in tqdm(images, unit="image", desc="looking inside"):
            try:
                image = to_rgb(path, "RGB", predictor.value_range)
                drawings, image_statistics = draw_parts(predictor, image, args.parts, args.query)
            except ImageReadError as error:
                notes.append(str(error))
                continue
            # An image may be too large for the memory, or have fewer queries than --query says.
            except (IndexError, RuntimeError, ValueError, MemoryError, cv2.error) as error:
                notes.append(f"cannot look inside on {path}: {one_line(error)}")
                continue

            write_drawings(args.output, path.stem, drawings, used)
            num_drawn += 1
            if image_statistics is not None:
                statistics.append(image_statistics)
    except KeyboardInterrupt:
        interrupted = True

    if statistics:
        plot = plot_query_statistics(QueryStatistics.joined(statistics))
        write_drawings(args.output, "queries", {".png": plot}, used)
    return num_drawn, interrupted


def run(args: argparse.Namespace) -> int:
    """Draw the images, and return the exit code: 1 if none could be read."""
    images, notes = find_images(args.input)
    check_output_dir(args.output, option="--output")
    predictor = Predictor(
        args.config_file,
        args.weights,
        device=args.device,
        overrides=args.opts,
        trust_config=args.trust_config,
        image_size=args.image_size,
    )

    num_queries = predictor.model.num_queries
    if args.query is not None and args.query >= num_queries:
        raise ValueError(f"--query is {args.query}, but the model has {num_queries}, from 0 on")

    num_drawn, interrupted = visualize(predictor, images, args, notes)
    print(f"{num_drawn} images looked into, drawn in {args.output}")
    print_skipped(notes)

    if interrupted:
        print(INTERRUPTED, file=sys.stderr)
        return 130
    return 0 if num_drawn else 1


def main(argv: list[str] | None = None) -> int:
    return run_program(run, parse_args(argv))
