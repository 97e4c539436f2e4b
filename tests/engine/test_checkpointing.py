"""Checkpoints are complete or not there."""

from __future__ import annotations

import os

import pytest
import torch
from torch import nn

from salience_detr.checkpoint import CheckpointError
from salience_detr.engine import checkpointing
from salience_detr.engine.checkpointing import TrainingCheckpointer, cut_metrics
from salience_detr.utils.files import check_output_dir


@pytest.fixture
def make(tmp_path):
    def build(**options):
        model = nn.Linear(2, 2)
        optimizer = torch.optim.AdamW(model.parameters())
        return TrainingCheckpointer(model, tmp_path, optimizer=optimizer, **options)

    return build


def test_the_newest_checkpoints_are_kept(make, tmp_path):
    checkpointer = make(max_to_keep=2)
    for iteration in (1, 2, 3, 10):
        checkpointer.save_periodic(iteration)

    checkpointer.save("model_best", iteration=2, resumable=False)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "last_checkpoint", "model_0000003.pth", "model_0000010.pth", "model_best.pth",
    ]  # fmt: skip


def test_resuming_restores_the_last_one(make):
    source, target = make(), make()
    source.save_periodic(4)

    assert target.resume() == 4
    assert torch.equal(source.model.weight, target.model.weight)


def test_resuming_further_back_keeps_what_is_saved_from_then_on(make, tmp_path):
    earlier = make()
    for iteration in (4, 50):
        earlier.save_periodic(iteration)

    (tmp_path / "last_checkpoint").write_text("model_0000004.pth")
    resumed = make(max_to_keep=1)

    assert resumed.resume() == 4

    resumed.save_periodic(11)
    assert {path.name for path in tmp_path.glob("*.pth")} == {
        "model_0000011.pth",
        "model_0000050.pth",
    }
    assert make().resume() == 11


def test_iterations_are_ordered_as_numbers(make, tmp_path):
    checkpointer = make(max_to_keep=1)
    for iteration in (9_999_999, 10_000_000):
        checkpointer.save_periodic(iteration)

    assert [path.name for path in tmp_path.glob("model_*.pth")] == ["model_10000000.pth"]


@pytest.mark.parametrize("content", [b"", b"model_9.pth"])
def test_without_a_usable_pointer_the_newest_checkpoint_is_taken(make, tmp_path, content):
    checkpointer = make()
    checkpointer.save("model_final", iteration=2)
    os.utime(tmp_path / "model_final.pth", (1, 1))  # the run was prolonged later
    checkpointer.save_periodic(3)
    (tmp_path / "last_checkpoint").write_bytes(content)

    assert make().resume() == 3


def test_half_written_and_broken_lines_of_metrics_are_dropped(tmp_path):
    path = tmp_path / "metrics.json"
    path.write_bytes(b'{"iteration": 0}\n\xff\xfe\n{"iteration": 1}\n{"iteration": 5}\n{"iter')
    cut_metrics(path, 5)

    assert path.read_text() == '{"iteration": 0}\n{"iteration": 1}\n'


def test_without_checkpoints_training_starts_at_zero(make):
    assert make().resume() == 0


def test_a_half_written_checkpoint_is_skipped(make, tmp_path):
    checkpointer = make()
    checkpointer.save_periodic(1)
    checkpointer.save_periodic(2)
    newest = tmp_path / "model_0000002.pth"
    newest.write_bytes(newest.read_bytes()[:700])
    (tmp_path / "model_0000003.pth.0123abcd.tmp").write_bytes(b"half")

    assert make().resume() == 1


def test_a_failed_write_leaves_the_earlier_file(make, tmp_path, monkeypatch):
    checkpointer = make()
    checkpointer.save("model_best", iteration=1, resumable=False)
    before = (tmp_path / "model_best.pth").read_bytes()

    def full(state, path):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpointing.torch, "save", full)
    with pytest.raises(
        OSError, match=r"cannot write the checkpoint .*model_best\.pth.*No space left.*are intact"
    ):
        checkpointer.save("model_best", iteration=2, resumable=False)
    assert (tmp_path / "model_best.pth").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["model_best.pth"]


def test_only_broken_checkpoints_are_an_error(make, tmp_path):
    (tmp_path / "model_0000002.pth").write_bytes(b"broken")
    with pytest.raises(CheckpointError, match="none of the checkpoints"):
        make().resume()


def test_weights_alone_cannot_be_resumed_from(make, tmp_path):
    torch.save({"model": nn.Linear(2, 2).state_dict()}, tmp_path / "model_0000002.pth")
    with pytest.raises(CheckpointError, match="holds no iteration, optimizer"):
        make().resume()


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(
        OSError, match=r"the output folder .*file.* cannot be written to.*train\.output_dir"
    ):
        check_output_dir(tmp_path / "file" / "output")


def test_too_little_space_is_reported_before_training(tmp_path):
    with pytest.raises(OSError, match="MiB free, but the checkpoints need about"):
        check_output_dir(tmp_path, needed_bytes=2**60)
