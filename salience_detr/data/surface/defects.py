"""Defects of metal surfaces, drawn into patches of albedo and height.

A patch is centered on the defect; x and y are pixels from its center. ``unit`` scales sizes to the
image, and ``grain`` is the angle in radians along which the metal was worked.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.random import Generator

from salience_detr.data.surface.textures import fractal_noise

VISIBLE = 0.3  # strength from which on a pixel belongs to a defect


@dataclass
class Defect:
    """A defect in a patch of size (h, w).

    Attributes:
        strength: (h, w) in [0, 1]; the box encloses the pixels above VISIBLE.
        albedo: (h, w), or (h, w, 3) for RGB, factor on the albedo.
        height: (h, w) added to the height, in pixels.
    """

    strength: np.ndarray
    albedo: np.ndarray
    height: np.ndarray

    def box(self) -> tuple[int, int, int, int]:
        """Return the edges (x0, y0, x1, y1) of the visible pixels; all are 0 if there are none."""
        visible = (self.strength > VISIBLE).astype(np.uint8)
        x, y, width, height = cv2.boundingRect(visible)
        return x, y, x + width, y + height


def _smoothstep(x: np.ndarray) -> np.ndarray:
    """Return a smooth step from 0 at x = 0 to 1 at x = 1."""
    x = np.clip(x, 0, 1)
    return x * x * (3 - 2 * x)


def _blob(
    rng: Generator, radii: tuple[float, float], angle: float, roughness: float, margin: float = 1.25
) -> np.ndarray:
    """Return the (h, w) distance from the center of an irregular ellipse, 1 on its outline."""
    half = int(np.ceil(max(radii) * (margin + roughness))) + 2
    axis = np.arange(-half, half + 1, dtype=np.float32)
    x = axis[None, :]
    y = axis[:, None]
    u = (x * np.cos(angle) + y * np.sin(angle)) / radii[0]
    v = (-x * np.sin(angle) + y * np.cos(angle)) / radii[1]

    # A Fourier series of the angle makes the outline irregular.
    phi = np.arctan2(v, u)
    outline = np.ones_like(phi)
    for k in range(2, 7):
        outline += roughness * rng.normal(0, 0.5) / k * np.cos(k * phi + rng.uniform(0, 2 * np.pi))
    return np.hypot(u, v) / np.clip(outline, 0.5, 1.5)


def _strokes(lines: list[np.ndarray], widths: list[float], half: int) -> np.ndarray:
    """Return the (h, w) coverage in [0, 1] of polylines of (n, 2) points (x, y)."""
    # Drawn four times as large, with OpenCV's 4 fractional bits, and averaged.
    fine = 4
    shift = 4
    side = 2 * half + 1
    canvas = np.zeros((side * fine, side * fine), np.uint8)
    for points, width in zip(lines, widths, strict=True):
        scaled = np.round((points + half + 0.5) * fine * 2**shift).astype(np.int32)
        cv2.polylines(canvas, [scaled], False, 255, max(1, round(width * fine)), cv2.LINE_AA, shift)
    coverage = cv2.resize(canvas, (side, side), interpolation=cv2.INTER_AREA)
    return coverage.astype(np.float32) / 255


def scratch(rng: Generator, unit: float, grain: float) -> Defect:
    """Draw a long, slightly bent, bright groove with a dark flank."""
    length = unit * rng.uniform(28, 120)
    angle = rng.choice([-1, 1]) * rng.uniform(0.35, 1.2)
    bend = rng.normal(0, 0.25)

    # A line whose direction changes linearly along it, centered.
    t = np.linspace(-0.5, 0.5, 24)
    direction = angle + bend * t
    steps = np.stack([np.cos(direction), np.sin(direction)], axis=1) * length / len(t)
    points = np.cumsum(steps, axis=0)
    points -= (points.min(0) + points.max(0)) / 2

    half = int(np.ceil(length / 2)) + 4
    width = unit * rng.uniform(1.0, 2.2)
    core = _strokes([points], [width], half)
    normal = np.array([-np.sin(angle), np.cos(angle)]) * width
    flank = _strokes([points + normal], [width], half)

    depth = rng.uniform(0.22, 0.55)
    albedo = 1 + depth * core - 0.6 * depth * flank * (1 - core)
    return Defect(core, albedo, -0.8 * core)


def pit(rng: Generator, unit: float, grain: float) -> Defect:
    """Draw a small round hole: dark, with a lit rim."""
    radius = unit * rng.uniform(3.2, 9)
    radii = (radius, radius * rng.uniform(0.8, 1.2))
    distance = _blob(rng, radii, rng.uniform(0, np.pi), 0.2, margin=1.6)
    inside = _smoothstep((1.15 - distance) / 0.3)
    depth = rng.uniform(0.35, 0.7)

    # A paraboloid with a raised rim; darker towards its center.
    bowl = -radius * 0.5 * np.clip(1 - distance**2, 0, None)
    rim = np.exp(-(((distance - 1.15) / 0.2) ** 2))
    shadow = 1.1 - 0.5 * np.clip(distance, 0, 1)
    return Defect(inside, 1 - depth * inside * shadow, bowl + radius * 0.1 * rim)


def inclusion(rng: Generator, unit: float, grain: float) -> Defect:
    """Draw foreign matter that was rolled in: a dark ragged patch along the grain."""
    length = unit * rng.uniform(10, 34)
    aspect = rng.uniform(0.3, 0.6)
    distance = _blob(rng, (length, length * aspect), grain + rng.normal(0, 0.2), 0.5)
    size = distance.shape[0]
    ragged = distance + 0.16 * fractal_noise(rng, size, size, coarsest=6 * unit, octaves=3)
    inside = _smoothstep((1.08 - ragged) / 0.16)
    inside *= distance < 1.3

    speckle = 1 + 0.12 * fractal_noise(rng, size, size, coarsest=4, octaves=2)
    depth = rng.uniform(0.3, 0.6)
    return Defect(inside, 1 - depth * inside * np.clip(speckle, 0.5, 1.4), 0.3 * inside)


def crack(rng: Generator, unit: float, grain: float) -> Defect:
    """Draw a thin dark line with sharp turns and branches."""
    length = unit * rng.uniform(34, 120)
    count = max(6, int(length / (unit * 6)))
    heading = rng.uniform(0, 2 * np.pi)
    main = _jagged(rng, heading, length, count)
    width = unit * rng.uniform(1.1, 2.0)

    # Thinner branches start somewhere on the main line.
    lines = [main]
    widths = [width]
    for _ in range(rng.integers(1, 4)):
        start = int(rng.integers(1, count - 1))
        turn = rng.choice([-1, 1]) * rng.uniform(0.5, 1.1)
        branch = _jagged(rng, heading + turn, length * rng.uniform(0.15, 0.4), max(3, count // 3))
        lines.append(branch + main[start])
        widths.append(0.75 * width)

    points = np.concatenate(lines)
    low = points.min(0)
    high = points.max(0)
    half = int(np.ceil((high - low).max() / 2)) + 4
    coverage = _strokes([line - (low + high) / 2 for line in lines], widths, half)
    depth = rng.uniform(0.4, 0.7)
    return Defect(coverage, 1 - depth * coverage, -1.2 * coverage)


def _jagged(rng: Generator, heading: float, length: float, count: int) -> np.ndarray:
    """Return (count + 1, 2) points of a random walk from the origin with sharp turns."""
    turns = heading + rng.normal(0, 0.55, count)
    directions = np.stack([np.cos(turns), np.sin(turns)], axis=1)
    steps = directions * (length / count) * rng.uniform(0.6, 1.4, (count, 1))
    return np.concatenate([np.zeros((1, 2)), np.cumsum(steps, axis=0)])


def stain(rng: Generator, unit: float, grain: float) -> Defect:
    """Draw dried liquid: a faint tinted patch with a darker edge, without relief."""
    radius = unit * rng.uniform(14, 46)
    radii = (radius, radius * rng.uniform(0.6, 1.0))
    distance = _blob(rng, radii, rng.uniform(0, np.pi), 0.6)
    inside = _smoothstep((1.05 - distance) / 0.12)
    edge = np.exp(-(((distance - 0.93) / 0.09) ** 2))

    tint = np.array([[0.25, 0.55, 1.0], [1.0, 0.55, 0.3], [0.7, 0.7, 0.7]])[rng.integers(3)]
    strength = rng.uniform(0.14, 0.34)
    cloud = 1 + 0.2 * fractal_noise(rng, *distance.shape, coarsest=radius, octaves=3)
    amount = strength * inside * (0.65 * np.clip(cloud, 0.5, 1.5) + 0.6 * edge)
    return Defect(inside, 1 - amount[..., None] * tint, np.zeros_like(inside))


def dent(rng: Generator, unit: float, grain: float) -> Defect:
    """Draw a smooth hollow: one side bright, the other dark, the metal itself unchanged."""
    radius = unit * rng.uniform(9, 30)
    radii = (radius, radius * rng.uniform(0.7, 1.0))
    distance = _blob(rng, radii, rng.uniform(0, np.pi), 0.15, margin=1.5)
    depth = radius * rng.uniform(0.22, 0.5)
    hollow = -depth * _smoothstep(1 - np.clip(distance, 0, 1))
    inside = _smoothstep((1.04 - distance) / 0.2)
    return Defect(inside, np.ones_like(inside), hollow)


# By the name of the class.
DEFECTS = {draw.__name__: draw for draw in (scratch, pit, inclusion, crack, stain, dent)}
