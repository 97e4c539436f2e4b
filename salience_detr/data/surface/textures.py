"""Metal-like surfaces without defects, and the camera that looks at them.

A surface is a height map (pixels) and an albedo map (in about [0, 1]), both float32.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.random import Generator

FINISHES = ("brushed", "rolled", "cast")


@dataclass
class Surface:
    """A piece of metal under a lamp.

    Attributes:
        albedo: (H, W, 3) float32 RGB.
        height: (H, W) float32, in pixels, towards the camera.
        light: (x, y) direction, of unit length, in which brightness rises with the slope.
        grain: angle in radians along which the metal was worked.
    """

    albedo: np.ndarray
    height: np.ndarray
    light: tuple[float, float]
    grain: float


def fractal_noise(
    rng: Generator, height: int, width: int, *, coarsest: float, octaves: int
) -> np.ndarray:
    """Draw (H, W) smooth noise of about unit variance.

    Args:
        coarsest: size of the largest features in pixels; each octave halves it.
    """
    noise = np.zeros((height, width), np.float32)
    for octave in range(octaves):
        cell = max(1.0, coarsest / 2**octave)
        shape = (int(height / cell) + 3, int(width / cell) + 3)
        coarse = rng.standard_normal(shape, dtype=np.float32)
        fine = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
        noise += fine * np.float32(0.6**octave)
    return noise / max(float(noise.std()), 1e-6)


def directed_noise(
    rng: Generator, height: int, width: int, *, angle: float, length: float, thickness: float
) -> np.ndarray:
    """Draw (H, W) streaks of about unit variance along ``angle`` (radians); sizes in pixels."""
    # A square that covers the image however it is rotated.
    side = int(np.ceil(np.hypot(height, width))) + 2
    noise = rng.standard_normal((side, side), dtype=np.float32)
    noise = cv2.GaussianBlur(noise, (0, 0), sigmaX=length, sigmaY=thickness)

    matrix = cv2.getRotationMatrix2D((side / 2, side / 2), -np.degrees(angle), 1.0)
    matrix[:, 2] -= ((side - width) / 2, (side - height) / 2)
    rotated = cv2.warpAffine(noise, matrix, (width, height), borderMode=cv2.BORDER_REFLECT)
    return rotated / max(float(rotated.std()), 1e-6)


def make_surface(rng: Generator, height: int, width: int) -> Surface:
    """Draw a random surface without defects."""
    finish = FINISHES[rng.integers(len(FINISHES))]
    grain = float(rng.normal(0, 0.12) + (np.pi / 2 if rng.random() < 0.3 else 0.0))
    tone = rng.uniform(0.38, 0.62)
    bumps = fractal_noise(rng, height, width, coarsest=90, octaves=4)

    if finish == "brushed":
        streaks = directed_noise(rng, height, width, angle=grain, length=28, thickness=0.6)
        bands = directed_noise(rng, height, width, angle=grain, length=60, thickness=3)
        albedo = tone * (1 + 0.055 * streaks + 0.03 * bands)
        relief = 0.05 * streaks
    elif finish == "rolled":
        streaks = directed_noise(rng, height, width, angle=grain, length=14, thickness=1.2)
        scale = fractal_noise(rng, height, width, coarsest=26, octaves=4)
        albedo = tone * (1 + 0.03 * streaks + 0.045 * scale)
        relief = 0.04 * streaks + 0.05 * scale
    else:
        grains = fractal_noise(rng, height, width, coarsest=7, octaves=3)
        albedo = tone * (1 + 0.035 * grains + 0.03 * bumps)
        relief = 0.22 * grains

    tint = 1 + rng.normal(0, 0.018, 3) + np.array([-0.01, 0.0, 0.015])
    angle = rng.uniform(0, 2 * np.pi)
    return Surface(
        albedo=(albedo[..., None] * tint).astype(np.float32),
        height=(relief + 0.15 * bumps).astype(np.float32),
        light=(float(np.cos(angle)), float(np.sin(angle))),
        grain=grain,
    )


def photograph(rng: Generator, surface: Surface) -> np.ndarray:
    """Take an (H, W, 3) uint8 RGB image: shading, uneven light, blur and sensor noise."""
    # Lambertian shading, linear in the slope towards the light.
    height, width = surface.height.shape
    slope_x = cv2.Sobel(surface.height, cv2.CV_32F, 1, 0, ksize=3, scale=1 / 8)
    slope_y = cv2.Sobel(surface.height, cv2.CV_32F, 0, 1, ksize=3, scale=1 / 8)
    shading = 1 + 0.55 * (slope_x * surface.light[0] + slope_y * surface.light[1])
    image = surface.albedo * (shading * illumination(rng, height, width))[..., None]

    if rng.random() < 0.6:
        image = cv2.GaussianBlur(image, (0, 0), sigmaX=float(rng.uniform(0.4, 0.9)))

    # Shot noise: its standard deviation grows with the root of the brightness.
    noise = rng.standard_normal(image.shape, dtype=np.float32)
    noise = noise * np.sqrt(np.clip(image, 0.02, 1))
    image = image + noise * np.float32(rng.uniform(0.008, 0.028))
    return (np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8)


def illumination(rng: Generator, height: int, width: int) -> np.ndarray:
    """Draw the (H, W) light over the image: a gradient, a broad reflection, and vignetting."""
    y = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    x = np.linspace(-1, 1, width, dtype=np.float32)[None]
    angle = rng.uniform(0, 2 * np.pi)
    strength = rng.uniform(0.03, 0.22)
    light = 1 + strength * (np.cos(angle) * x + np.sin(angle) * y)

    across = np.cos(angle) * x + np.sin(angle) * y - rng.uniform(-0.8, 0.8)
    light += rng.uniform(0, 0.22) * np.exp(-((across / rng.uniform(0.25, 0.7)) ** 2))

    light *= 1 - rng.uniform(0, 0.18) * (x**2 + y**2) / 2
    return (light * rng.uniform(0.85, 1.2)).astype(np.float32)
