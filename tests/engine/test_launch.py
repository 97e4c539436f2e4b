"""The process that died is named, not one of those that miss it."""

from __future__ import annotations

import os
from types import SimpleNamespace

import pytest
import torch
from detectron2.utils import comm
from omegaconf import OmegaConf
from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException

from salience_detr.engine import launch as launching
from salience_detr.engine.launch import PEER_DIED, ProcessDiedError, launch, report_failure

LOST = "[gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:1"
ARGS = SimpleNamespace(eval_only=False, machine_rank=1, num_gpus=2)


def exited(index, code):
    return ProcessExitedException("", index, 123, code)


def lost(index):
    return ProcessRaisedException(LOST, index, 123)


@pytest.mark.parametrize(
    ("failure", "codes", "message", "exit_code"),
    [
        (exited(1, -9), [-15, -9], r"process 3 was killed by the signal SIGKILL", 137),
        (exited(0, -11), [-11, -15], r"process 2 was killed by the signal SIGSEGV", 139),
        (exited(0, -15), [-15, -15], r"process 2 was killed by the signal SIGTERM", 143),
        (exited(1, 3), [-9, 3], r"process 3 ended with the exit code 3", 3),
        (exited(0, 1), [1, -15], r"process 2 ended with the exit code 1", 1),
        (exited(0, -40), [-40, -15], r"process 2 was killed by the signal 40", 168),
        # The other process was noticed first.
        (exited(0, PEER_DIED), [PEER_DIED, -6], r"process 3 was killed by the signal SIGABRT", 134),
        (exited(0, PEER_DIED), [PEER_DIED, 5], r"process 3 ended with the exit code 5", 5),
        (
            exited(0, PEER_DIED),
            [PEER_DIED, 0],
            r"process 2 has lost the connection to another process",
            70,
        ),
        (
            lost(0),
            [1, -9],
            r"process 3 was killed by the signal SIGKILL",
            137,
        ),
        (
            lost(0),
            [1, -15],
            r"process 3 was killed by the signal SIGTERM",
            143,
        ),
    ],
)
def test_what_died_is_named_with_the_remedy(failure, codes, message, exit_code):
    with pytest.raises(ProcessDiedError, match=rf"^{message}.*; go on .* with --resume$") as error:
        report_failure(failure, codes, ARGS)
    assert error.value.exit_code == exit_code


def test_an_error_that_was_printed_is_not_told_again():
    with pytest.raises(SystemExit, match="2"):
        report_failure(exited(0, 2), [2, -15], ARGS)


def test_an_unexpected_error_keeps_its_traceback():
    with pytest.raises(ProcessRaisedException, match="ZeroDivisionError"):
        report_failure(ProcessRaisedException("ZeroDivisionError", 0, 123), [1, -15], ARGS)


@pytest.fixture
def gpu_machine(monkeypatch):
    """A machine that says that it has GPUs; nothing can run on them."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)


@pytest.mark.parametrize(
    ("device", "backend"), [("cpu", "gloo"), ("cpu:0", "gloo"), ("auto", "nccl"), ("cuda", "nccl")]
)
def test_torchruns_processes_talk_by_what_their_device_needs(
    gpu_machine, monkeypatch, device, backend
):
    joined = []
    for name, value in (("LOCAL_RANK", "1"), ("WORLD_SIZE", "2"), ("LOCAL_WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.distributed, "init_process_group", joined.append)
    monkeypatch.setattr(torch.distributed, "destroy_process_group", lambda: None)
    monkeypatch.setattr(comm, "create_local_process_group", joined.append)

    config = OmegaConf.create({"train": {"device": device}})
    launch(lambda args, config: joined.append(config.train.device), ARGS, config)
    assert joined == [backend, 2, device]


@pytest.mark.parametrize(("device", "visible"), [("cpu", ""), ("auto", "0,1")])
def test_detectron2s_processes_see_no_gpu_where_they_train_on_the_cpu(
    gpu_machine, monkeypatch, device, visible
):
    seen = []
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    monkeypatch.delenv("LOCAL_RANK", raising=False)

    def start_and_wait(main, args):
        seen.append(os.environ["CUDA_VISIBLE_DEVICES"])

    monkeypatch.setattr(launching, "start_and_wait", start_and_wait)
    args = SimpleNamespace(num_gpus=2, num_machines=1)
    launch(None, args, OmegaConf.create({"train": {"device": device}}))
    assert seen == [visible]


def test_processes_that_talk_by_gloo_share_the_cores(gpu_machine, monkeypatch):
    threads = []
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    monkeypatch.setattr(comm, "get_local_size", lambda: 2)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    for backend in ("gloo", "nccl"):
        monkeypatch.setattr(torch.distributed, "get_backend", lambda name=backend: name)
        launching.share_cpu_threads()
    assert threads == [4]
