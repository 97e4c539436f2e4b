#!/usr/bin/env python
"""Draw what happens inside a model on images: NAME_salience_levels.png, NAME_tokens.png, NAME_proposals.png,
NAME_sampling.png and NAME_cam.png of each, and queries.png, figures of the queries of all of them together.

    visualize_model.py --config-file F --weights W --input a.jpg folder 'shots/*.png' --output out
    visualize_model.py --config-file F --weights W --input a.jpg --output out --parts sampling cam --query 17

NAME_proposals.png tells the numbers of the best queries.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
from PIL import Image
from tqdm import tqdm

from salience_detr.checkpoint import CheckpointError
from salience_detr.config import ConfigError, is_override
from salience_detr.data.images import ImageReadError, read_image
from salience_detr.inference.inputs import collect_inputs, is_video
from salience_detr.predictor import Predictor
from salience_detr.utils.errors import one_line
from salience_detr.utils.files import check_output_dir, written_whole
from salience_detr.visualization import (
    Inspection,
    QueryStatistics,
    class_activation,
    draw_attribution,
    draw_proposals,
    draw_salience_levels,
    draw_sampling_points,
    draw_selected_tokens,
    inspect,
    plot_query_statistics,
)

# Each part and what its files are called behind the name of the image; that of the queries is one for all images.
ENDINGS = {
    "salience": "_salience_levels.png",
    "tokens": "_tokens.png",
    "proposals": "_proposals.png",
    "sampling": "_sampling.png",
    "cam": "_cam.png",
}
PARTS = [*ENDINGS, "queries"]


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--config-file", required=True, metavar="FILE", help="the LazyConfig file of the model"
    )
    parser.add_argument("--weights", required=True, metavar="FILE", help=".pth or .safetensors")
    parser.add_argument(
        "--input", required=True, nargs="+", metavar="PATH", help="images, folders or patterns"
    )
    parser.add_argument(
        "--output", required=True, type=Path, metavar="DIR", help="where drawings go"
    )
    parser.add_argument(
        "--parts",
        nargs="+",
        default=PARTS,
        metavar="PART",
        help=f"some of: {', '.join(PARTS)} (default: all)",
    )
    parser.add_argument(
        "--query",
        type=int,
        metavar="N",
        help="number of the query for sampling and cam, from 0 (default: those of the best detections)",
    )
    parser.add_argument(
        "--device", default="auto", help="cpu, cuda, ... (default: a GPU if there is one)"
    )
    parser.add_argument("opts", nargs="*", metavar="key=value", help="overrides of the config")
    args = parser.parse_intermixed_args(argv)
    # A list of paths or parts swallows the overrides that follow it.
    for name in ("input", "parts"):
        words = getattr(args, name)
        args.opts += [x for x in words if is_override(x)]
        setattr(args, name, [x for x in words if not is_override(x)])
        if not getattr(args, name):
            parser.error(f"--{name} needs at least one word")
    for part in args.parts:
        if part not in PARTS:
            parser.error(f"--parts {part} is unknown; use some of {', '.join(PARTS)}")
    if args.query is not None and args.query < 0:
        parser.error(f"--query is {args.query}; queries are numbered from 0")
    return args


@dataclass
class Run:
    """What a run makes.

    Attributes:
        predictor: the model.
        output: folder.
        parts: that are drawn, some of PARTS.
        query: for sampling and cam; None is that of the best detection.
        taken: paths that no drawing may have: those of the inputs and of other drawings.
        failed: a message for each input that was passed over.
        statistics: of the queries of each image.
        succeeded: how many images were drawn.
    """

    predictor: Predictor
    output: Path
    parts: set[str]
    query: int | None
    taken: set[Path]
    failed: list[str]
    statistics: list[QueryStatistics] = field(default_factory=list)
    succeeded: int = 0

    def draw(self, image: np.ndarray) -> dict[str, np.ndarray]:
        """The drawings of one (H, W, 3) RGB image by their part; the figures of its queries are kept."""
        draw: dict[str, Callable[[Inspection], np.ndarray]] = {
            "salience": draw_salience_levels,
            "tokens": draw_selected_tokens,
            "proposals": draw_proposals,
            "sampling": lambda inspection: draw_sampling_points(inspection, self.query),
        }
        drawings = {}
        if self.parts - {"cam"}:
            inspection = inspect(self.predictor, image)
            drawings = {part: draw[part](inspection) for part in draw if part in self.parts}
        if "cam" in self.parts:
            queries = None if self.query is None else [self.query]
            drawings["cam"] = draw_attribution(
                class_activation(self.predictor, image, queries=queries)
            )
        if "queries" in self.parts:
            self.statistics.append(QueryStatistics.of(inspection))
        return drawings

    def paths(self, stem: str, endings: list[str]) -> list[Path]:
        """A path in the output folder for each ending; the name gets a number where one is taken."""
        name, number = stem, 1
        while True:
            paths = [self.output / f"{name}{ending}" for ending in endings]
            resolved = {path.resolve() for path in paths}
            if not resolved & self.taken:
                self.taken |= resolved
                return paths
            number += 1
            name = f"{stem}_{number}"

    def work_through(self, files: list[Path]) -> None:
        """Draw the files; those that cannot be read are noted and passed over.

        Raises:
            OSError: a drawing cannot be written.
        """
        for path in tqdm(files, unit="image", desc="looking inside"):
            try:
                drawings = self.draw(read_image(str(path)))
            except ImageReadError as error:
                self.failed.append(str(error))
            except (
                IndexError,
                RuntimeError,
                ValueError,
                MemoryError,
                cv2.error,
            ) as error:  # too large, for example
                self.failed.append(f"cannot look inside on {path}: {one_line(error)}")
            else:
                self.write(
                    path.stem, {ENDINGS[part]: drawing for part, drawing in drawings.items()}
                )
                self.succeeded += 1

    def write(self, stem: str, drawings: dict[str, np.ndarray]) -> None:
        """Write (H, W, 3) RGB drawings, named by the stem and their endings."""
        for path, drawing in zip(self.paths(stem, list(drawings)), drawings.values(), strict=True):
            with written_whole(path) as temporary:
                Image.fromarray(drawing).save(temporary, format="PNG")

    def finish(self) -> None:
        """Write the figures of the queries of all images."""
        if self.statistics:
            self.write(
                "queries", {".png": plot_query_statistics(QueryStatistics.joined(self.statistics))}
            )


def check_query(query: int | None, predictor: Predictor) -> None:
    """Find out before the work whether a query can exist.

    Raises:
        ValueError: it cannot.
    """
    if query is not None and query >= predictor.model.num_queries:
        raise ValueError(
            f"--query is {query}, but the model has {predictor.model.num_queries}, numbered from 0"
        )


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns 0 if anything was drawn, 1 if nothing could be read, 2 on a wrong call."""
    args = parse_args(argv)
    try:
        files, missing = collect_inputs(args.input)
        images = [path for path in files if not is_video(path)]
        missing += [
            f"{path} is a video; demo/demo.py takes those" for path in files if is_video(path)
        ]
        if not images:
            raise FileNotFoundError("; ".join(missing))
        check_output_dir(args.output, option="--output")
        predictor = Predictor(
            args.config_file, args.weights, device=args.device, overrides=args.opts
        )
        check_query(args.query, predictor)
    except (CheckpointError, ConfigError, OSError, ValueError) as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    taken = {path.resolve() for path in files}
    run = Run(predictor, args.output, set(args.parts), args.query, taken, failed=missing)
    interrupted = False
    try:
        try:
            run.work_through(images)
        except KeyboardInterrupt:
            interrupted = True
        run.finish()
    except OSError as error:
        print(f"error: cannot write to {args.output}: {error.strerror or error}", file=sys.stderr)
        return 2
    print(f"{run.succeeded} images looked into, drawn in {args.output}")
    if run.failed:
        print(
            f"{len(run.failed)} inputs were passed over:", *run.failed, sep="\n  ", file=sys.stderr
        )
    if interrupted:
        print("interrupted: what was done until then is written", file=sys.stderr)
        return 130
    return 0 if run.succeeded else 1


if __name__ == "__main__":
    sys.exit(main())
