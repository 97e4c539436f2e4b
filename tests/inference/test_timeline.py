"""Videos of variable rate take as long as their source."""

from __future__ import annotations

import numpy as np
import pytest

from salience_detr.inference.timeline import Timeline, choose_rate


def places(times, stated, duration):
    rate = choose_rate(times, stated)
    timeline = Timeline(rate, duration)
    return [timeline.place(time) for time in times], timeline


@pytest.mark.parametrize("rate", [8, 25, 29.97, 60])
@pytest.mark.parametrize("digits", [3, 9])
def test_a_constant_rate_keeps_each_frame_once(rate, digits):
    times = [round(1.4 + i / rate, digits) for i in range(1000)]
    found, timeline = places(times, rate, 1000 / rate)
    assert found == list(range(1000)) and timeline.rate == rate
    assert timeline.full_length() == 1000 and timeline.reaches(0.99)


BURST_FIRST = [i / 60 for i in range(300)] + [5 + i / 10 for i in range(50)]
SLOW_FIRST = [i / 10 for i in range(50)] + [5 + i / 60 for i in range(300)]
SCREEN = [0, 0.1, 0.2, 3.0, 3.1, 3.2, 9.0, 9.1, 9.5]
DROPPED = [i / 30 for i in range(300) if not 100 <= i < 190]


@pytest.mark.parametrize("stated", [10, 25, 30, 35, 60])
@pytest.mark.parametrize("times", [BURST_FIRST, SLOW_FIRST, SCREEN, DROPPED])
def test_a_variable_rate_keeps_times_and_duration(times, stated):
    times = [round(time, 3) for time in times]
    found, timeline = places(times, stated, 10)
    assert found == sorted(set(found))
    assert np.abs(np.array(found) / timeline.rate - times).max() < 0.12
    assert timeline.full_length() / timeline.rate == pytest.approx(10, abs=0.1)
    assert timeline.reaches(0.9)


def test_frames_without_usable_times_follow_each_other():
    for times in ([0.0] * 50, [float("nan")] * 50, [i / 25 for i in range(25)] + [0.0] * 25):
        found, timeline = places(times, 25, 2)
        assert found == list(range(50)) and timeline.rate == 25


def test_a_jump_of_the_clock_is_no_gap():
    times = [i / 25 for i in range(50)] + [95_000 + i / 25 for i in range(50)]
    for duration in (4, None):
        found, _ = places(times, 25, duration)
        assert found == list(range(100))


def test_a_video_that_breaks_off_does_not_reach_its_end():
    _, timeline = places([i / 25 for i in range(50)], 25, 4)
    assert not timeline.reaches(0.9) and timeline.full_length() == 50
