"""What hooks do between the steps."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from detectron2.utils.events import EventStorage, get_event_storage
from timm.utils import ModelEmaV3
from torch import nn

from salience_detr.engine.hooks import (
    BestCheckpoint,
    EMAHook,
    EvaluationHook,
    PreviewHook,
)


def test_the_ema_follows_fast_at_first_and_slowly_later():
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    ema = ModelEmaV3(model, decay=0.75, use_warmup=True)
    hook = EMAHook(ema, model)
    nn.init.ones_(model.weight)
    seen = []
    for iteration in (0, 2, 100):
        hook.trainer = SimpleNamespace(iter=iteration)
        hook.after_step()
        seen.append(ema.module.weight.item())
        with torch.no_grad():
            model.weight += 1

    # Kept of the EMA: nothing at first, 1 - 2^(-2/3) = 0.37004 at the third step, later 0.75.
    third = 0.37004 * 1 + 0.62996 * 2
    assert seen == pytest.approx([1, third, 0.75 * third + 0.25 * 3], abs=1e-4)


def test_images_are_kept_as_files_and_for_tensorboard(tmp_path):
    pixels = np.full((4, 6, 3), 200, np.uint8)
    hook = PreviewHook(lambda finished: {"a": pixels}, 2, tmp_path)

    with EventStorage() as storage:
        # One step before an evaluation, at one, after it, and at the end.
        for iteration in (0, 1, 2, 4):
            hook.trainer = SimpleNamespace(iter=iteration, max_iter=5, storage=storage)
            hook.after_step()
        assert [(name, image.shape) for name, image, _ in storage._vis_data] == [
            ("previews/a", (3, 4, 6))
        ] * 2
    assert sorted(path.name for path in (tmp_path / "previews").iterdir()) == [
        "a_0000002.jpg",
        "a_0000005.jpg",
    ]


class Counter:
    """Writer that notes the APs in the storage."""

    def __init__(self):
        self.seen = []

    def write(self):
        self.seen.append(
            {name: value for name, value in get_event_storage().latest().items() if "AP" in name}
        )


@pytest.mark.parametrize("made_up", [False, True])
def test_an_evaluation_is_written_at_once_and_belongs_to_its_step(tmp_path, made_up):
    writer = Counter()
    best = SimpleNamespace(path=tmp_path / "model_best.json", update=lambda *_: None)
    hook = EvaluationHook(
        3,
        lambda finished: {"bbox/AP": 5.0},
        best=best,
        writers=[writer],
    )

    with EventStorage(3 if made_up else 2) as storage:
        hook.trainer = SimpleNamespace(
            start_iter=3 * made_up, iter=storage.iter, max_iter=9, storage=storage
        )
        hook.before_train()
        if not made_up:
            hook.after_step()
        assert storage.iter == (3 if made_up else 2)
    assert writer.seen == [{"bbox/AP": (5.0, 2)}]


def test_the_best_checkpoint_is_kept_and_a_metric_that_there_is_not_is_logged(tmp_path, caplog):
    saved = []
    checkpointer = SimpleNamespace(output_dir=tmp_path, save=lambda name, **_: saved.append(name))
    BestCheckpoint(checkpointer, "bbox/APfoo").update(1, {"bbox/AP": 3.0})

    assert "there is no bbox/APfoo; there are bbox/AP" in caplog.text and not saved

    BestCheckpoint(checkpointer, "bbox/AP").update(2, {"bbox/AP": 3.0})
    assert saved == ["model_best"]

    BestCheckpoint(checkpointer, "bbox/AP").update(3, {"bbox/AP": 2.0})
    assert saved == ["model_best"]


def test_without_boxes_to_evaluate_on_the_last_checkpoint_is_the_best(tmp_path, caplog):
    saved = []
    checkpointer = SimpleNamespace(
        output_dir=tmp_path, save=lambda name, iteration, **_: saved.append(iteration)
    )
    best = BestCheckpoint(checkpointer, "bbox/AP")
    best.update(1, {"bbox/AP": float("nan")})
    best.update(2, {"bbox/AP": float("nan")})
    assert saved == [1, 2]
    assert "model_best is the last one, after 2 iterations" in caplog.text
    assert json.loads(best.path.read_text()) == {
        "metric": "bbox/AP", "value": None, "iteration": 2,
    }  # fmt: skip

    # A number is better than none, and stays.
    best.update(3, {"bbox/AP": 0.0})
    best.update(4, {"bbox/AP": float("nan")})
    assert saved == [1, 2, 3] and best.best_value() == 0


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe",
        b"[1]",
        b"5",
        b'{"metric": "bbox/AP"}',
        b'{"metric": "bbox/AP", "value": "high"}',
        b'{"metric": "bbox/AP", "value": NaN}',
        b'{"metric": "bbox/AP50", "value": 99}',
        pytest.param(b"[" * 100_000, id="deep"),
    ],
)
def test_a_broken_record_of_the_best_is_told_and_written_anew(tmp_path, content, caplog):
    (tmp_path / "model_best.json").write_bytes(content)
    checkpointer = SimpleNamespace(output_dir=tmp_path, save=lambda name, **_: None)

    BestCheckpoint(checkpointer, "bbox/AP").update(3, {"bbox/AP": 2.0})

    assert "model_best.json" in caplog.text and "the next evaluation is the best" in caplog.text
    assert json.loads((tmp_path / "model_best.json").read_text())["value"] == 2
