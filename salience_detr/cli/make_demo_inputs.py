"""Prepare the inputs of the demo: some images, and a video of a plate that slides past a camera."""

from __future__ import annotations

import argparse
import math
import shutil
import tempfile
from pathlib import Path

import numpy as np

from salience_detr.cli.arguments import run_program
from salience_detr.cli.flags.make_demo_inputs import parse_args
from salience_detr.data.surface import render_surface
from salience_detr.inference.video import VideoWriter

FPS = 10  # of the video
SEED = 7  # of the plate


def make_video(path: Path, *, seconds: float, side: int) -> None:
    """Write the video that a camera, ``side`` pixels wide and high, takes of a moving plate."""
    # A point of the plate crosses the window within two seconds.
    num_frames = round(seconds * FPS)
    pixels_per_frame = max(1, side // (2 * FPS))
    length = side + num_frames * pixels_per_frame

    # Segments of the size that the model was trained on, side by side, each with its own light.
    rng = np.random.default_rng(SEED)
    num_segments = math.ceil(length / side)
    segments = [render_surface(rng, side, side).image for _ in range(num_segments)]
    plate = np.concatenate(segments, axis=1)

    # The name's ending says the format. A video that is interrupted leaves nothing.
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        temporary = Path(folder) / path.name
        with VideoWriter(temporary, fps=FPS, h264=False) as video:
            for i in range(num_frames):
                left = i * pixels_per_frame
                video.write(plate[:, left : left + side])
        temporary.replace(path)


def run(args: argparse.Namespace) -> None:
    """Copy the images, and make the video."""
    args.output.mkdir(parents=True, exist_ok=True)
    images = []
    if args.images:
        images = sorted(args.images.glob("*.jpg"))[: args.num_images]
    for image in images:
        shutil.copy(image, args.output)

    # The video is the same each time, so one of an earlier run is kept.
    video = args.output / "conveyor.mp4"
    if not video.is_file():
        make_video(video, seconds=args.seconds, side=args.image_size)
    print(f"{len(images)} images and a video in {args.output}")


def main(argv: list[str] | None = None) -> int:
    return run_program(run, parse_args(argv))
