"""Drawings of the metrics of runs, and messages where there are none."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from salience_detr.cli import train as train_net
from salience_detr.cli.plot_metrics import (
    main,
    plot_precision_recall,
    read_metrics,
    run_names,
    series,
    smooth,
)


@pytest.fixture
def finished_run(surface_data, micro_config, tmp_path):
    output = tmp_path / "run"
    words = ["--config-file", micro_config, "train.eval_period=3", f"train.output_dir={output}"]
    assert train_net.run(words) == 0
    return output


def test_a_run_gives_four_images(finished_run, capsys):
    assert main([str(finished_run)]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 4
    names = ["ap.png", "confusion.png", "losses.png", "precision_recall.png"]
    assert sorted(path.name for path in (finished_run / "plots").iterdir()) == names
    for name in names:
        image = np.asarray(Image.open(finished_run / "plots" / name))
        assert len(np.unique(image.reshape(-1, image.shape[-1]), axis=0)) > 5


def test_runs_can_be_compared_in_one_image(finished_run, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    # Only losses, and a last line that a kill cut off.
    (other / "metrics.json").write_text(
        '{"iteration": 0, "total_loss": 3.0}\n{"iteration": 1, "total_loss": 2.0}\n{"it'
    )
    assert main([str(finished_run), str(other), "--output", str(tmp_path / "both")]) == 0
    assert sorted(path.name for path in (tmp_path / "both").iterdir()) == ["ap.png", "losses.png"]
    assert series(read_metrics(other), "total_loss")[0].tolist() == [1, 2]


def test_smoothing_adapts_to_the_number_of_points():
    # One outlier: a few points are drawn as they are, of many the median of 5 %.
    few = np.array([1.0, 9.0, 1.0])
    assert smooth(few).tolist() == few.tolist()

    many = np.ones(1000)
    many[500] = 9.0
    assert smooth(many).max() == 1.0


def test_evaluations_by_themselves_are_no_points_of_the_training(tmp_path):
    lines = [{"iteration": 0, "bbox/AP": 3.0}, {"iteration": None, "bbox/AP": 9.0, "eval_only": {}}]
    iterations, values = series(lines, "bbox/AP")
    assert (iterations.tolist(), values.tolist()) == ([1], [3.0])


def test_what_is_missing_is_named(tmp_path, finished_run, capsys):
    assert main([str(tmp_path)]) == 2
    assert "holds no metrics.json" in capsys.readouterr().err
    config = finished_run / "config.yaml"
    config.unlink()
    assert main([str(finished_run)]) == 2
    assert "name the annotation file with --annotations" in capsys.readouterr().err


def test_runs_of_the_same_name_are_told_apart(tmp_path):
    assert run_names([tmp_path / "a" / "run", tmp_path / "b" / "run"]) == ["a/run", "b/run"]
    assert run_names([tmp_path / "x", tmp_path / "y"]) == ["x", "y"]
    assert run_names([tmp_path / "x"]) == ["x"]


def test_without_boxes_there_is_no_precision(tmp_path):
    nothing = np.full((10, 101), np.nan)
    assert not plot_precision_recall({"pit": nothing}, tmp_path / "x.png")
    assert plot_precision_recall({"pit": nothing, "dent": np.ones((10, 101))}, tmp_path / "x.png")
