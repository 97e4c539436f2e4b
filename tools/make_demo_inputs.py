#!/usr/bin/env python
"""Prepare the inputs of the demo: some images, and a video of a plate that slides past a camera.

tools/make_demo_inputs.py --output DIR --images datasets/surface_defects/val
"""

from __future__ import annotations

import argparse
import math
import shutil
import sys
from pathlib import Path

import numpy as np

from salience_detr.data.surface import render_surface
from salience_detr.inference.video import VideoWriter
from salience_detr.utils.errors import print_error


def make_video(path: Path, *, seconds: float, fps: int, side: int, seed: int) -> None:
    """Write the video that a camera, ``side`` pixels wide and high, takes of a moving plate."""
    # A point of the plate crosses the window within two seconds.
    num_frames = round(seconds * fps)
    pixels_per_frame = max(1, side // (2 * fps))
    length = side + num_frames * pixels_per_frame

    # Segments of the size that the model was trained on, side by side, each with its own light.
    rng = np.random.default_rng(seed)
    num_segments = math.ceil(length / side)
    segments = [render_surface(rng, side, side).image for _ in range(num_segments)]
    plate = np.concatenate(segments, axis=1)

    # The ending names the format, so it stays last; an interrupted video is made anew.
    temporary = path.with_name(f"{path.stem}.part{path.suffix}")
    with VideoWriter(temporary, fps=fps) as video:
        for i in range(num_frames):
            left = i * pixels_per_frame
            video.write(plate[:, left : left + side])
    temporary.replace(path)


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )

    add = parser.add_argument
    add("--output", type=Path, required=True, metavar="DIR")
    add("--images", type=Path, metavar="DIR", help="folder to take JPEG images from")
    add("--num-images", type=int, default=8)
    add("--seconds", type=float, default=4, help="length of the video")
    add("--fps", type=int, default=10, help="frames per second")
    add("--size", type=int, default=320, help="side of the video in pixels")
    add("--seed", type=int, default=7, help="of the plate")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    images: list[Path] = []
    try:
        args.output.mkdir(parents=True, exist_ok=True)
        if args.images:
            images = sorted(args.images.glob("*.jpg"))[: args.num_images]
        for image in images:
            shutil.copy(image, args.output)

        # The video is the same each time, so one of an earlier run is kept.
        video = args.output / "conveyor.mp4"
        if not video.is_file():
            make_video(video, seconds=args.seconds, fps=args.fps, side=args.size, seed=args.seed)
    except (OSError, ValueError) as error:
        print_error(error)
        return 2

    print(f"{len(images)} images and a video in {args.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
