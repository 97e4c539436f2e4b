"""Where the numbers of a run go."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace

import pytest
from detectron2.utils.events import EventStorage

from salience_detr.config import ConfigError
from salience_detr.engine.writers import MetricsWriter, wandb_run


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
