"""The process that died is named, not one of those that miss it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException

from salience_detr.engine.launch import PEER_DIED, ProcessDiedError, report_failure

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
