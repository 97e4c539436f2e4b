"""Checkpoints are complete or not there."""

from __future__ import annotations

import copy
import logging
import os

import pytest
import torch
from detectron2.solver import LRMultiplier
from fvcore.common.param_scheduler import ConstantParamScheduler
from torch import nn

from salience_detr.checkpoint import (
    CheckpointError,
    ScoreThresholds,
    read_checkpoint,
    read_thresholds,
)
from salience_detr.checkpoint.files import save_weights, store_thresholds
from salience_detr.data.classes import ClassList
from salience_detr.engine import checkpointing
from salience_detr.engine.checkpointing import TrainingCheckpointer, cut_metrics
from salience_detr.engine.resume_checks import DataOrder
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


def test_thresholds_stay_with_their_weights_alone(make, tmp_path):
    make().save("model_final", iteration=4)
    best = ScoreThresholds({"pit": 0.3}, overall=0.3, iou_threshold=0.5, source="val.json")
    store_thresholds(tmp_path / "model_final.pth", best)

    resumed = make()
    assert resumed.resume() == 4

    resumed.save("model_final", iteration=4)
    resumed.save_periodic(5)
    assert read_thresholds(tmp_path / "model_final.pth") == best
    assert read_thresholds(tmp_path / "model_0000005.pth") is None


def test_others_can_read_a_file_with_thresholds_as_any_new_file(tmp_path):
    path = tmp_path / "weights.safetensors"
    save_weights({"weight": torch.zeros(2)}, path)
    umask = os.umask(0o022)
    try:
        store_thresholds(path, ScoreThresholds({"pit": 0.5}, 0.5, 0.5, "val.json"))
    finally:
        os.umask(umask)
    assert path.stat().st_mode & 0o777 == 0o644
    assert read_thresholds(path) is not None


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


def test_links_to_nothing_folders_and_empty_files_do_not_stop_a_resume(make, tmp_path, caplog):
    make().save_periodic(2)
    (tmp_path / "model_0000003.pth").symlink_to("nowhere.pth")
    (tmp_path / "model_0000004.pth").mkdir()
    (tmp_path / "model_0000005.pth").touch()
    (tmp_path / "model_final.pth").symlink_to("nowhere.pth")
    (tmp_path / "last_checkpoint").write_text("model_0000003.pth")

    checkpointer = make(max_to_keep=1)
    assert checkpointer.resume() == 2
    assert "model_0000003.pth: it is a broken link" in caplog.text
    assert "model_0000004.pth: it is a folder" in caplog.text

    # The names are needed later.
    for iteration in (3, 4, 5):
        checkpointer.save_periodic(iteration)
    assert make().resume() == 5
    assert (tmp_path / "model_0000004.pth.folder").is_dir()


@pytest.mark.parametrize("content", [b"\xff\xfe\n", b"../x.pth", b"model_best.pth", b"\x00"])
def test_a_broken_pointer_is_told(make, tmp_path, content, caplog):
    make().save_periodic(2)
    (tmp_path / "last_checkpoint").write_bytes(content)
    assert make().resume() == 2
    assert "last_checkpoint names no checkpoint: taking the newest" in caplog.text


def change(path, *keys, value):
    """Replace an entry of a saved checkpoint."""
    content = read_checkpoint(path)
    node = content
    for key in keys[:-1]:
        node = node[key]
    node[keys[-1]] = value
    torch.save(content, path)


BROKEN = [
    (["iteration"], "three"),
    (["iteration"], -1),
    (["iteration"], 2.5),
    (["iteration"], True),
    (["model"], [1, 2]),
    (["model", "weight"], "text"),
    (["model", "weight"], torch.full((2, 2), torch.nan)),
    (["model", "bias"], torch.tensor([1.0, torch.inf])),
    (["model", "weight"], torch.eye(2).to_sparse()),
    (["model", "weight"], torch.empty(2, 2, device="meta")),
    (["model", 5], torch.zeros(1)),
    (["optimizer"], 5),
    (["optimizer", "param_groups"], {}),
    (["optimizer", "param_groups", 0, "lr"], "fast"),
    (["optimizer", "param_groups", 0, "betas"], (0.9,)),
    (["optimizer", "param_groups", 0, "params"], None),
    (["optimizer", "param_groups", 0, "params"], [7, 8]),
    (["optimizer", "state"], [1]),
    (["optimizer", "state", 0], None),
    (["optimizer", "state", 0, "step"], "five"),
    (["optimizer", "state", 0, "exp_avg"], 3.0),
    (["optimizer", "state", 0, "exp_avg"], torch.full((2, 2), torch.nan)),
    (["optimizer", "state", 0, "exp_avg"], torch.full((2, 2), torch.inf)),
    (["optimizer", "state", 0, "exp_avg_sq"], torch.full((2, 2), -1.0)),
    (["optimizer", "state", 0], {"step": 1.0, "exp_avg": torch.zeros(2, 2)}),
    (["optimizer", "param_groups", 0, "lr"], -1.0),
    (["scheduler"], {"optimizer": 5, "last_epoch": 2}),
    (["scheduler", "last_epoch"], None),
    (["scheduler", "base_lrs"], [0.1, 0.2]),
    (["data_order"], "text"),
]


@pytest.fixture
def trained(make):
    """Make checkpointers of a model that was trained for a step: its optimizer has a state."""

    def build():
        checkpointer = make()
        optimizer = checkpointer.checkpointables["optimizer"]
        scheduler = LRMultiplier(optimizer, ConstantParamScheduler(1.0), 10)
        checkpointer.add_checkpointable("scheduler", scheduler)
        checkpointer.add_checkpointable("data_order", DataOrder({"seed": 1}))
        checkpointer.model(torch.ones(1, 2)).sum().backward()
        optimizer.step()
        return checkpointer

    return build


@pytest.mark.parametrize(("keys", "value"), BROKEN)
def test_a_checkpoint_that_no_run_has_written_is_passed_over(
    trained, tmp_path, keys, value, caplog
):
    saved = trained()
    saved.save_periodic(1)
    saved.save_periodic(2)
    change(tmp_path / "model_0000002.pth", *keys, value=value)

    assert trained().resume() == 1
    assert caplog.text.count("skipping") == 1 and "model_0000002.pth" in caplog.text


MISFITS = [
    (["model", "weight"], torch.zeros(3, 2), "weight: .3, 2. in the file"),
    (["model", "weight"], torch.zeros(2, 2, dtype=torch.int64), "of another kind: weight"),
    (["model", "other"], torch.zeros(2), "not in the model: other"),
    (["optimizer", "state", 0, "exp_avg"], torch.zeros(5), "exp_avg of parameter 0 has the shape"),
    (["optimizer", "param_groups", 0, "params"], [0, 1, 2], "3 parameters in 1 groups, this run 2"),
    (["data_order", "seed"], 2, "seed was 2, is 1"),
]


@pytest.mark.parametrize("call", ["resume", "load"])
@pytest.mark.parametrize(("keys", "value", "message"), MISFITS)
def test_a_checkpoint_of_another_run_is_refused_and_nothing_is_loaded(
    trained, tmp_path, keys, value, message, call
):
    trained().save_periodic(2)
    path = tmp_path / "model_0000002.pth"
    change(path, *keys, value=value)

    checkpointer = trained()
    before = copy.deepcopy([checkpointer.model.state_dict(), optimizer_of(checkpointer)])
    with pytest.raises(CheckpointError, match=message):
        checkpointer.resume() if call == "resume" else checkpointer.load(str(path))

    after = [checkpointer.model.state_dict(), optimizer_of(checkpointer)]
    torch.testing.assert_close(after, before, rtol=0, atol=0)


def optimizer_of(checkpointer):
    return checkpointer.checkpointables["optimizer"].state_dict()


def test_fvcores_way_to_load_loads_the_model_alone_or_everything(trained, tmp_path):
    saved = trained()
    saved.save_periodic(2)

    model_alone = trained()
    before = copy.deepcopy(optimizer_of(model_alone))
    path = str(tmp_path / "model_0000002.pth")
    assert model_alone.resume_or_load(path, resume=False) == {"iteration": 2}
    assert torch.equal(model_alone.model.weight, saved.model.weight)
    torch.testing.assert_close(optimizer_of(model_alone), before, rtol=0, atol=0)

    everything = trained()
    assert everything.resume_or_load("", resume=True) == {"iteration": 2}
    torch.testing.assert_close(optimizer_of(everything), optimizer_of(saved), rtol=0, atol=0)


def test_a_run_is_resumed_with_the_classes_that_it_was_started_with(make, tmp_path, caplog):
    make(classes=ClassList(("pit", "dent"), (3, 7))).save_periodic(4)
    saved = read_checkpoint(tmp_path / "model_0000004.pth")
    assert (saved["class_names"], saved["category_ids"]) == (["pit", "dent"], [3, 7])

    for names in (("dent", "pit"), ("pit", "weld"), ("pit", "dent", "weld")):
        other = make(classes=ClassList(names))
        before = other.model.weight.clone()
        with pytest.raises(CheckpointError, match=r"for the classes pit, dent, .*--weights"):
            other.resume()
        assert torch.equal(other.model.weight, before)

    assert make(classes=ClassList(("Pit ", "dent"), (3, 7))).resume() == 4
    assert make().resume() == 4  # of data without names
    assert not [x for x in caplog.records if x.levelno >= logging.WARNING]
    assert make(classes=ClassList(("pit", "dent"), (1, 2))).resume() == 4
    assert "category ids of the data set have changed" in caplog.text
