"""Processes of a run: one, several by detectron2's launcher, or those that torchrun started."""

from __future__ import annotations

import argparse
import logging
import os
import re
import signal
import time
from collections.abc import Callable
from typing import NoReturn, TypeAlias

import torch
import torch.multiprocessing
from detectron2.engine.launch import DEFAULT_TIMEOUT, _distributed_worker, _find_free_port
from detectron2.utils import comm
from omegaconf import DictConfig
from torch.multiprocessing.spawn import ProcessException, ProcessRaisedException

from salience_detr.utils.signals import ForwardedSignals

Main: TypeAlias = Callable[[argparse.Namespace, DictConfig | None], None]

# Exit codes of processes: after an error that was printed, and after the death of another one.
REPORTED = 2
PEER_DIED = 70

# What gloo, nccl and the store say when the other side of a connection is gone.
LOST_PEER = re.compile(
    r"closed by peer|reset by peer|broken pipe|connection (was )?(closed|reset|refused|aborted)|"
    r"remote process exited|socket (error|timeout)|nccl.*(error|abort)|gloo.*(timed out|error)",
    re.IGNORECASE,
)
LAUNCHER_SECONDS = 20


class ProcessDiedError(RuntimeError):
    """Death of a process of a run.

    Attributes:
        exit_code: of the program, as a shell has it.
    """

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def launch(main: Main, args: argparse.Namespace, config: DictConfig) -> None:
    """Call ``main(args, config)`` in every process.

    The processes talk through gloo where there is no GPU or ``train.device`` is cpu, else through
    nccl, which exchanges tensors on GPUs only.

    Processes that are started here get None for the config and make their own: a config file may
    register data sets and define functions, neither of which can be handed to another process.

    Raises:
        ProcessDiedError: a process was killed, or ended without reporting an error.
        ProcessRaisedException: a process ended with an unexpected error, whose traceback it has.
    """
    # torchrun has started this process as one of several.
    if "LOCAL_RANK" in os.environ and "WORLD_SIZE" in os.environ:
        init_torchrun_process(config.train.device)
        try:
            main(args, config)
        finally:
            torch.distributed.destroy_process_group()

    elif args.num_gpus * args.num_machines == 1:
        main(args, config)

    else:
        # detectron2's processes take nccl where they see a GPU.
        if config.train.device.startswith("cpu"):
            os.environ["CUDA_VISIBLE_DEVICES"] = ""
        start_and_wait(main, args)


def start_and_wait(main: Main, args: argparse.Namespace) -> None:
    """Start the processes of this machine and wait until they end.

    detectron2's ``launch`` waits for them, too, but does not say which of them died first.

    Raises:
        ProcessDiedError, ProcessRaisedException: see :func:`launch`.
    """
    dist_url = args.dist_url
    if dist_url == "auto":
        if args.num_machines > 1:
            raise ValueError("--dist-url auto is for one machine: set tcp://HOST:PORT of machine 0")
        dist_url = f"tcp://127.0.0.1:{_find_free_port()}"

    # It would say which processes it ends after one has died.
    logging.getLogger("torch.multiprocessing.spawn").setLevel(logging.ERROR)

    world_size = args.num_gpus * args.num_machines
    sizes = (world_size, args.num_gpus, args.machine_rank)
    with ForwardedSignals():
        context = torch.multiprocessing.start_processes(
            _distributed_worker,
            (main, *sizes, dist_url, (args, None), DEFAULT_TIMEOUT),
            nprocs=args.num_gpus,
            join=False,
        )
        try:
            while not context.join():
                pass
        except ProcessException as failure:
            report_failure(failure, [process.exitcode for process in context.processes], args)


def report_failure(
    failure: ProcessException, exit_codes: list[int | None], args: argparse.Namespace
) -> None:
    """Raise the error of the process that made the others end.

    Args:
        failure: what PyTorch noticed first, which may be one of the others.
        exit_codes: of all processes: of those that it ended, -SIGTERM or -SIGKILL.
        args: of the command line.

    Raises:
        ProcessDiedError, ProcessRaisedException: see :func:`launch`.
        SystemExit: a process has reported an error of the user.
    """
    # A process that misses another one may be noticed first.
    first = failure.error_index
    if exit_codes[first] == PEER_DIED or LOST_PEER.search(str(failure)):
        expected = (None, 0, 1, PEER_DIED, -signal.SIGTERM)
        dead = [i for i, code in enumerate(exit_codes) if code not in expected]
        dead += [i for i, code in enumerate(exit_codes) if code == -signal.SIGTERM]
        first = next(iter(dead), first)

    code = exit_codes[first] or 0
    if code == REPORTED:
        raise SystemExit(code)
    if first == failure.error_index and isinstance(failure, ProcessRaisedException):
        raise failure

    rank = args.machine_rank * args.num_gpus + first
    remedy = "evaluate again" if args.eval_only else "go on from the last checkpoint with --resume"
    raise ProcessDiedError(f"process {rank} {describe_end(code)}; {remedy}", shell_code(code))


def describe_end(code: int) -> str:
    """Describe the exit code of a process that has not reported why it ended."""
    if code == PEER_DIED:
        return "has lost the connection to another process, which has ended"
    if code >= 0:
        return f"ended with the exit code {code}"

    number = -code
    name = str(number)
    if number in set(signal.Signals):
        name = signal.Signals(number).name
    hint = " (often for lack of memory)" if number == signal.SIGKILL else ""
    return f"was killed by the signal {name}{hint}"


def shell_code(code: int) -> int:
    """Return the exit code that a shell gives for a process, never 0."""
    return 128 - code if code < 0 else code or 1


def is_lost_peer(error: RuntimeError) -> bool:
    """Return whether an error comes from the death of another process."""
    return comm.get_world_size() > 1 and LOST_PEER.search(str(error)) is not None


def end_after_peer() -> NoReturn:
    """End this process after another one has died.

    Raises:
        SystemExit: after the launcher had the time to see the other process first, and to end this
            one.
    """
    time.sleep(LAUNCHER_SECONDS)
    raise SystemExit(PEER_DIED)


def init_torchrun_process(device: str) -> None:
    """Join the process group of torchrun, as its environment variables say.

    Args:
        device: ``train.device`` of the config.
    """
    backend = "gloo"
    if not device.startswith("cpu") and torch.cuda.is_available():
        backend = "nccl"
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))

    torch.distributed.init_process_group(backend)
    local_size = os.environ.get("LOCAL_WORLD_SIZE", os.environ["WORLD_SIZE"])
    comm.create_local_process_group(int(local_size))


def any_process(flag: bool) -> bool:
    """Return whether the flag is set in some process; every process calls this."""
    if comm.get_world_size() == 1:
        return flag

    # nccl exchanges tensors on the GPU only.
    device = "cuda" if torch.distributed.get_backend() == "nccl" else "cpu"
    flags = torch.tensor(int(flag), device=device)
    torch.distributed.all_reduce(flags, torch.distributed.ReduceOp.MAX)
    return bool(flags)


def share_cpu_threads() -> None:
    """Give each process its part of the machine's cores, where each would else use all of them."""
    if comm.get_world_size() > 1 and torch.distributed.get_backend() != "nccl":
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // comm.get_local_size()))
