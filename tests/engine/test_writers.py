"""Where the numbers of a run go."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace

import pytest
from detectron2.utils.events import EventStorage

from salience_detr.config import ConfigError
from salience_detr.engine.mlflow_writer import MLflowWriter
from salience_detr.engine.writers import MetricsWriter, build_writers, wandb_run


class FakeWandb:
    """Wandb that notes what it is told; its runs are all called run7."""

    def __init__(self):
        self.calls = []
        self.finished = 0

    def init(self, **options):
        self.calls.append(options)
        return SimpleNamespace(id="run7", finish=self.finish)

    def finish(self):
        self.finished += 1


def test_wandb_follows_tensorboard_and_a_resumed_run_continues_the_same_one(tmp_path, monkeypatch):
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)

    for _ in range(2):
        with wandb_run(str(tmp_path), enabled=True, project="p", name=None):
            assert fake.finished == len(fake.calls) - 1
    assert fake.finished == 2 and all(call["sync_tensorboard"] for call in fake.calls)
    assert [(call["project"], call["id"]) for call in fake.calls] == [("p", None), ("p", "run7")]


def test_wandb_is_not_touched_if_it_is_not_enabled(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with wandb_run(str(tmp_path), enabled=False, project="p"):
        assert not list(tmp_path.iterdir())


def test_without_the_package_wandb_is_an_error_with_the_remedy(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with (
        pytest.raises(ConfigError, match="pip install wandb"),
        wandb_run(str(tmp_path), enabled=True),
    ):
        pass


def test_results_follow_the_numbers_of_their_step_in_a_line_of_their_own(tmp_path):
    writer = MetricsWriter(str(tmp_path / "metrics.json"))
    with EventStorage(4) as storage:
        storage.put_scalars(total_loss=2.0, smoothing_hint=False)
        writer.write()
        storage.put_scalars(**{"bbox/AP": 30.0}, smoothing_hint=False)
        writer.write()
        writer.write()
    writer.close()

    lines = [json.loads(line) for line in (tmp_path / "metrics.json").read_text().splitlines()]
    assert lines == [{"iteration": 4, "total_loss": 2.0}, {"iteration": 4, "bbox/AP": 30.0}]


class FakeMlflow:
    """MLflow that notes what it is told; its runs are all called run7."""

    exceptions = SimpleNamespace(MlflowException=type("MlflowException", (Exception,), {}))

    def __init__(self):
        self.runs = []
        self.metrics = []
        self.down = False

    def set_experiment(self, name):
        if self.down:
            raise self.exceptions.MlflowException("no server\nat all")

    def start_run(self, run_id, run_name):
        self.runs.append(run_id)
        return SimpleNamespace(info=SimpleNamespace(run_id="run7"))

    def log_artifact(self, path):
        assert path.endswith("config.yaml")

    def log_metrics(self, metrics, step):
        self.set_experiment("")
        self.metrics.append((step, metrics))

    def end_run(self):
        self.runs.append("end")


def test_mlflow_gets_each_step_once_and_a_resumed_run_continues_the_same_one(
    tmp_path, monkeypatch, caplog
):
    fake = FakeMlflow()
    monkeypatch.setitem(sys.modules, "mlflow", fake)
    for start in (3, 5):
        *_, writer = build_writers(str(tmp_path), start, {"enabled": True, "experiment": "e"})
        with EventStorage(start) as storage:
            storage.put_scalars(**{"bbox/AP-a(b)": 2.0, "lr": 0.5}, smoothing_hint=False)
            writer.write()
            writer.write()
            storage.iter = start + 1
            storage.put_scalar("lr", 0.25, smoothing_hint=False)
            fake.down = start == 5
            writer.write()
        writer.close()

    # Parentheses are none of the characters that it takes. A server that is gone ends nothing.
    assert fake.runs == [None, "end", "run7", "end"]
    first = {"bbox/AP-a_b_": 2.0, "lr": 0.5}
    assert fake.metrics == [(3, first), (4, {"lr": 0.25}), (5, first)]
    assert "MLflow has not got the numbers of step 6" in caplog.text

    with pytest.raises(ConfigError, match="MLflow says: no server"):
        MLflowWriter(str(tmp_path), experiment="e")
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(ConfigError, match=r"pip install 'salience_detr\[mlflow\]'"):
        MLflowWriter(str(tmp_path), experiment="e")
