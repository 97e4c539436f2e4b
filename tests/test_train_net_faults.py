"""Runs whose processes die, whose folder vanishes or whose disk is full."""

from __future__ import annotations

import errno
import json
import shutil
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest
from detectron2.utils.events import EventStorage, TensorboardXWriter
from tensorboard.summary.writer.event_file_writer import _AsyncWriterThread

from salience_detr.checkpoint import read_checkpoint
from salience_detr.engine import train
from salience_detr.engine.run_folder import LOCK_NAME
from salience_detr.engine.writers import MetricsWriter, TensorBoardWriter
from tests.test_train_net import command, environment, losses, run, wait_for_steps


def start(config, output, *words):
    """Start a run that does not end by itself."""
    return subprocess.Popen(
        command(config, output, "train.max_iter=100000", "train.checkpointer.period=0", *words),
        env=environment(CUDA_VISIBLE_DEVICES=""),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def ranks_of(process):
    """Return the process ids of the processes of a run, that of process 0 first."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [int(x) for x in children if b"spawn_main" in Path(f"/proc/{x}/cmdline").read_bytes()]


@pytest.mark.parametrize(("rank", "number"), [(1, signal.SIGKILL), (0, signal.SIGSEGV)])
def test_a_killed_process_is_named_and_the_others_end(
    micro_config, surface_data, tmp_path, rank, number
):
    process = start(micro_config, tmp_path, "--num-gpus", "2")
    wait_for_steps(tmp_path, process)
    ranks = ranks_of(process)
    subprocess.run(["kill", f"-{int(number)}", str(ranks[rank])], check=True)
    _, errors = process.communicate(timeout=120)

    assert process.returncode == 128 + number
    assert errors.startswith(f"error: process {rank} was killed by the signal {number.name}")
    assert errors.endswith("go on from the last checkpoint with --resume\n")
    assert errors.count("\n") == 1
    assert not any(Path(f"/proc/{pid}").exists() for pid in ranks)


def test_a_folder_that_is_moved_ends_the_run_with_its_state_saved(
    micro_config, surface_data, tmp_path
):
    output = tmp_path / "out"
    process = start(micro_config, output)
    wait_for_steps(output, process)
    output.rename(tmp_path / "moved")
    _, errors = process.communicate(timeout=120)

    assert process.returncode == 2 and errors.count("error:") == 1 and "Traceback" not in errors
    assert f"the output folder {output} was deleted or moved during the run" in errors
    assert read_checkpoint(output / (output / "last_checkpoint").read_text())["iteration"] > 0


def test_a_second_run_in_a_folder_is_refused_but_not_an_evaluation(
    micro_config, surface_data, tmp_path, capsys
):
    process = start(micro_config, tmp_path)
    try:
        wait_for_steps(tmp_path, process)
        for words in ([], ["--resume"]):
            assert run(micro_config, tmp_path, *words) == 2
            assert f"is writing to {tmp_path} (process {process.pid} on" in capsys.readouterr().err

        # It gets as far as to its weights.
        assert run(micro_config, tmp_path, "--eval-only") == 2
        assert "--eval-only needs weights" in capsys.readouterr().err
    finally:
        process.kill()
        process.communicate()

    assert (tmp_path / LOCK_NAME).exists()
    assert run(micro_config, tmp_path, "train.max_iter=1") == 0


def test_the_numbers_of_a_saved_step_are_on_record_before_its_evaluation(
    micro_config, surface_data, tmp_path, monkeypatch
):
    def die(*arguments):
        raise RuntimeError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(train, "evaluate_with_ema", die)
        with pytest.raises(RuntimeError, match="killed"):
            run(micro_config, tmp_path, "train.eval_period=2")
    assert losses(tmp_path).keys() == {0, 1}
    assert read_checkpoint(tmp_path / "model_0000002.pth")["iteration"] == 2

    assert run(micro_config, tmp_path, "train.eval_period=2", "--resume") == 0
    lines = [json.loads(line) for line in (tmp_path / "metrics.json").read_text().splitlines()]
    assert [line["iteration"] for line in lines] == [0, 1, 1, 2, 3, 3, 4, 5, 5]
    assert [line["iteration"] for line in lines if "bbox/AP" in line] == [1, 3, 5]


def test_a_full_disk_is_one_line_with_the_way_on(
    micro_config, surface_data, tmp_path, monkeypatch, capsys
):
    def fill(self):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(MetricsWriter, "write", fill)
    assert run(micro_config, tmp_path) == 2
    errors = capsys.readouterr().err
    assert f"error: no space is left for {tmp_path}" in errors and "--resume" in errors
    assert "Logging error" not in errors and "Traceback" not in errors


def test_the_config_of_a_run_is_complete_or_not_there(
    micro_config, surface_data, tmp_path, monkeypatch
):
    assert run(micro_config, tmp_path, "train.max_iter=1") == 0
    before = (tmp_path / "config.yaml").read_text()

    def fill(config):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(train, "to_yaml", fill)
    assert run(micro_config, tmp_path, "train.max_iter=2", "--resume") == 2
    assert (tmp_path / "config.yaml").read_text() == before


def test_tensorboard_cannot_write_and_nothing_but_the_end_of_the_run_says_so(tmp_path, capsys):
    # Its thread, or the next call, meets the missing folder, whoever comes first.
    writer = TensorBoardWriter(str(tmp_path / "run"))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "log.txt").touch()
    with EventStorage(0) as storage, pytest.MonkeyPatch.context() as patch:
        patch.setattr(threading, "excepthook", train.report_thread_error)
        storage.put_scalar("loss", 1.0)
        writer.write()
        shutil.rmtree(tmp_path / "run")
        for iteration in range(1, 40):
            storage.iter = iteration
            storage.put_scalar("loss", 1.0)
            writer.write()
            time.sleep(0.01)
        writer.close()
    assert capsys.readouterr().err == ""


def test_tensorboard_on_a_full_disk_ends_the_run(tmp_path, monkeypatch):
    def fill(self, *arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    writer = TensorBoardWriter(str(tmp_path))
    (tmp_path / "log.txt").touch()
    monkeypatch.setattr(TensorboardXWriter, "write", fill)
    with pytest.raises(OSError, match="No space left"):
        writer.write()


def test_threads_other_than_those_of_tensorboard_show_their_tracebacks(capsys):
    error = OSError(errno.ENOSPC, "No space left on device")
    thread = _AsyncWriterThread(None, None, 1)
    train.report_thread_error(threading.ExceptHookArgs((OSError, error, None, thread)))
    assert capsys.readouterr().err == ""

    train.report_thread_error(threading.ExceptHookArgs((OSError, error, None, None)))
    assert "No space left" in capsys.readouterr().err
