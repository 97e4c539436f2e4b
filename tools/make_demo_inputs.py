#!/usr/bin/env python
"""Put together what the demo runs on: a few images, and a short video of a plate that slides past a camera."""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

import numpy as np

from salience_detr.data.surface import render_surface
from salience_detr.inference.video import VideoWriter


def make_video(path: Path, *, seconds: float, fps: int, side: int, seed: int) -> None:
    """A square camera window of ``side`` pixels moves along a plate; the same seed draws the same plate."""
    frames = round(seconds * fps)
    speed = max(
        1, side // (2 * fps)
    )  # pixels per frame: two seconds until a point has crossed the window
    rng = np.random.default_rng(seed)
    length = side + frames * speed
    # Segments of the size that the model was trained on, laid side by side, each with its own light.
    segments = [render_surface(rng, side, side).image for _ in range(-(-length // side))]
    plate = np.concatenate(segments, axis=1)
    temporary = path.with_name(f"{path.stem}.part{path.suffix}")
    with VideoWriter(temporary, fps=fps) as video:
        for i in range(frames):
            video.write(plate[:, i * speed : i * speed + side])
    temporary.replace(path)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    parser.add_argument("--images", type=Path, metavar="DIR", help="folder to take images from")
    parser.add_argument("--num-images", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=4)
    parser.add_argument("--fps", type=int, default=10)
    parser.add_argument("--size", type=int, default=320, help="side of the video in pixels")
    parser.add_argument("--seed", type=int, default=7)
    args = parser.parse_args(argv)
    try:
        args.output.mkdir(parents=True, exist_ok=True)
        images = sorted(args.images.glob("*.jpg"))[: args.num_images] if args.images else []
        for image in images:
            shutil.copy(image, args.output / image.name)
        video = args.output / "conveyor.mp4"
        if not video.is_file():
            make_video(video, seconds=args.seconds, fps=args.fps, side=args.size, seed=args.seed)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{len(images)} images and a video in {args.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
