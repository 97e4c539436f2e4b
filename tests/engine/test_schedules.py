"""Schedules: values by hand, and the flag that replaces the schedule of any config."""

from __future__ import annotations

from pathlib import Path

import pytest
from detectron2.config import instantiate

from salience_detr.config import load_config, to_yaml
from salience_detr.engine.schedules import cosine_schedule, flat_cosine_schedule, use_schedule

ROOT = Path(__file__).resolve().parents[2]


def rates(piece, iterations, max_iter):
    schedule = instantiate(piece)
    return [schedule(iteration / max_iter) for iteration in iterations]


def test_a_cosine_falls_from_the_full_rate_to_the_end():
    # (1 + cos(pi * x)) / 2 at x = 1/4, 1/2, 3/4.
    found = rates(cosine_schedule(max_iter=100, warmup=0), [0, 25, 50, 75], 100)
    assert found == pytest.approx([1, 0.853553, 0.5, 0.146447], abs=1e-6)

    # 0.1 + 0.9 * 0.5
    assert rates(cosine_schedule(max_iter=100, warmup=0, end=0.1), [50], 100) == [0.55]


def test_a_warm_up_meets_the_cosine():
    # At iteration 20, (1 + cos(pi / 5)) / 2 = 0.904508; half of the way there is 10.
    found = rates(cosine_schedule(max_iter=100, warmup=20), [0, 10, 20], 100)
    assert found == pytest.approx([0.001, 0.452754, 0.904508], abs=1e-5)


def test_a_flat_cosine_keeps_the_full_rate_for_a_part_of_the_run():
    piece = flat_cosine_schedule(max_iter=100, flat=0.6, warmup=10)
    found = rates(piece, [5, 10, 59, 60, 70, 80, 90], 100)
    expected = [0.5005, 1, 1, 1, 0.853553, 0.5, 0.146447]
    assert found == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("name", ["cosine", "flat-cosine"])
def test_the_flag_replaces_the_schedule_and_keeps_the_warm_up(name, tmp_path):
    config = load_config(ROOT / "configs/surface_defects_tiny.py")
    use_schedule(config, name)
    assert config.lr_multiplier.warmup_length == pytest.approx(200 / 3500)

    # The whole config is written, and read again as data.
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    again = load_config(tmp_path / "config.yaml")
    expected = instantiate(config.lr_multiplier)
    found = instantiate(again.lr_multiplier)
    for where in (0.01, 0.3, 0.7, 0.99):
        assert found(where) == expected(where)


def test_steps_stay_steps_and_others_become_the_published_one():
    config = load_config(ROOT / "configs/surface_defects_tiny.py")
    use_schedule(config, "step")
    assert list(config.lr_multiplier.scheduler.milestones) == [3000]

    # A tenth after 10 of 12 parts of 3,500 iterations.
    use_schedule(config, "cosine")
    use_schedule(config, "step")
    assert list(config.lr_multiplier.scheduler.milestones) == [2917]
