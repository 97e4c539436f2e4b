"""Early stopping: when a run ends, what it says, and that a resumed run ends alike."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
from detectron2.utils.events import EventStorage

from salience_detr.engine.early_stopping import EarlyStop, EarlyStoppingHook, read_values


class Run:
    """Hook with a folder, in which evaluations come every ten steps of a hundred."""

    def __init__(self, folder, patience, schedule=lambda where: 1.0):
        self.folder = folder
        self.saved = []
        checkpointer = SimpleNamespace(
            output_dir=folder, save=lambda name, iteration: self.saved.append((name, iteration))
        )
        self.hook = EarlyStoppingHook(
            patience, "bbox/AP", checkpointer=checkpointer, schedule=schedule
        )

    def go(self, values, start=0):
        """Return the number of steps until the end, from the evaluation after ``start`` on."""
        with EventStorage(start) as storage, open(self.folder / "metrics.json", "a") as file:
            trainer = SimpleNamespace(start_iter=start, iter=start, max_iter=100, storage=storage)
            self.hook.trainer = trainer
            try:
                self.hook.before_train()
                for number, value in enumerate(values, start // 10 + 1):
                    trainer.iter = storage.iter = 10 * number - 1
                    storage.put_scalar("bbox/AP", value)
                    print(json.dumps({"iteration": trainer.iter, "bbox/AP": value}), file=file)
                    file.flush()
                    self.hook.after_step()
            except EarlyStop:
                return trainer.iter + 1
        return None


@pytest.mark.parametrize(
    ("values", "end"),
    [
        ([1, 2, 3, 4, 5], None),
        # Best after 20 steps, then two that are no better; an equal value is none.
        ([1, 3, 2, 3, 9], 40),
        ([3, 2, 4, 3, 3], 50),
        # Without boxes there is no number, and nothing to wait for.
        ([float("nan")] * 5, None),
        ([1, float("nan"), 0.5, 0.25], 40),
    ],
)
def test_a_run_ends_after_two_evaluations_without_a_better_one(tmp_path, values, end):
    run = Run(tmp_path, 2)
    assert run.go(values) == end
    assert run.saved == ([("model_final", end)] if end else [])


def test_the_reason_names_the_best_and_a_decay_that_was_not_reached(tmp_path, caplog):
    with caplog.at_level("INFO"):
        Run(tmp_path, 1, schedule=lambda where: 1.0 if where < 0.5 else 0.1).go([5, 4])

    assert "the run ends early after 1 evaluations without a better bbox/AP" in caplog.text
    assert "stopped early after 20 iterations: bbox/AP was best after 10 iterations" in caplog.text
    assert "still at 100% of its peak and not at the 10% of the end" in caplog.text


def test_no_decay_is_named_where_it_was_reached(tmp_path, caplog):
    with caplog.at_level("INFO"):
        Run(tmp_path, 1, schedule=lambda where: 0.1).go([5, 4])
    assert "stopped early" in caplog.text and "peak" not in caplog.text


def test_a_resumed_run_ends_where_an_uninterrupted_one_does(tmp_path):
    assert Run(tmp_path, 3).go([5, 4, 3]) is None
    assert Run(tmp_path, 3).go([2, 1], start=30) == 40

    # It ends at once if it had ended before, and goes on with more patience.
    assert Run(tmp_path, 3).go([9], start=40) == 41
    assert Run(tmp_path, 4).go([9, 1], start=40) is None


def test_marked_evaluations_do_not_count(tmp_path):
    path = tmp_path / "metrics.json"
    lines = [
        {"iteration": 9, "bbox/AP": 4.0},
        {"iteration": 19, "bbox/AP": 5.0, "eval_only": True},
        {"iteration": 29, "total_loss": 5.0},
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert read_values(path, "bbox/AP") == {10: 4.0}
