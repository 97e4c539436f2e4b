"""Checkpoints are complete or not there."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from salience_detr.checkpoint import CheckpointError
from salience_detr.engine import checkpointing
from salience_detr.engine.checkpointing import TrainingCheckpointer, check_output_dir


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


def test_without_checkpoints_training_starts_at_zero(make):
    assert make().resume() == 0


def test_a_half_written_checkpoint_is_passed_over(make, tmp_path):
    checkpointer = make()
    checkpointer.save_periodic(1)
    checkpointer.save_periodic(2)
    newest = tmp_path / "model_0000002.pth"
    newest.write_bytes(newest.read_bytes()[:700])
    (tmp_path / "model_0000003.pth.tmp").write_bytes(b"half")
    assert make().resume() == 1


def test_a_failed_write_leaves_the_earlier_file(make, tmp_path, monkeypatch):
    checkpointer = make()
    checkpointer.save("model_best", iteration=1, resumable=False)
    before = (tmp_path / "model_best.pth").read_bytes()

    def full(state, path):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpointing.torch, "save", full)
    with pytest.raises(OSError, match=r"cannot write the checkpoint .*model_best\.pth.*No space left.*are intact"):
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
    with pytest.raises(OSError, match=r"the output folder .*file.* cannot be written to.*train\.output_dir"):
        check_output_dir(tmp_path / "file" / "output")


def test_too_little_space_is_reported_before_training(tmp_path):
    with pytest.raises(OSError, match="MiB free, but the checkpoints need about"):
        check_output_dir(tmp_path, needed_bytes=2**60)
