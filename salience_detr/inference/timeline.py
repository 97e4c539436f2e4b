"""Places of the frames of a video of variable rate in a video of constant rate.

OpenCV writes constant rates only. Frames are repeated in it, so that the video takes as long.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

SAME_RATE = 0.05  # relative difference of rates that are taken for the same
RATES = (1.0, 120.0)  # of a video with a variable rate
MAX_GAP = 60.0  # seconds between frames; a longer gap is a jump of the clock


def choose_rate(times: Sequence[float], stated: float) -> float:
    """Return the frames per second of a video for the frames at these times, in seconds.

    It is the stated rate, if the frames follow it or their times are of no use. A video of a
    variable rate gets the highest rate that it has for more than a tenth of the time.
    """
    intervals = np.diff(times)
    intervals = intervals[intervals > 0]
    if len(intervals) < 2:
        return stated

    shortest = np.quantile(intervals, 0.1)
    # Times are often rounded to milliseconds.
    rate = 1 / intervals[intervals <= 1.5 * shortest].mean()
    if abs(rate - stated) <= SAME_RATE * stated:
        return stated
    return float(np.clip(rate, *RATES))


class Timeline:
    """Places of frames, which begin with 0, from the times of the source.

    A place is at most one from where the time says, so that times that are rounded change nothing.
    No frame is left out: those that come faster than the rate are late until others come slower.

    Args:
        rate: frames per second.
        duration: of the source in seconds; None where it is unknown. Times beyond it are mistakes.
    """

    def __init__(self, rate: float, duration: float | None) -> None:
        self.rate = rate
        self.duration = duration
        self.length = 0
        self.elapsed = 0.0
        self.start: float | None = None
        self.is_variable = False

    def place(self, time: float) -> int:
        """Return the place of the next frame, which is at ``time`` seconds of the source."""
        if not math.isfinite(time):
            time = 0.0
        if self.start is None:
            self.start = time

        elapsed = time - self.start
        end = math.inf if self.duration is None else self.duration + 1
        if elapsed > min(self.elapsed + MAX_GAP, end) and elapsed > self.elapsed + 1:
            # The clock has jumped: this frame follows the last one.
            self.start = time - self.elapsed - 1 / self.rate
            elapsed = time - self.start
        self.elapsed = max(self.elapsed, elapsed)

        place = round(elapsed * self.rate)
        if place > self.length + 1:
            self.is_variable = True
        else:
            place = self.length
        self.length = place + 1
        return place

    def full_length(self) -> int:
        """Return the number of places until the end of the last frame."""
        if not self.is_variable or self.duration is None:
            return self.length
        return max(self.length, round(self.duration * self.rate))

    def reaches(self, part: float) -> bool:
        """Return whether the frames until now cover this part of the duration."""
        shown = self.elapsed + 1 / self.rate
        return self.duration is None or shown >= part * self.duration
