"""Processes of a run: one, several by detectron2's launcher, or those that torchrun started."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from typing import TypeAlias

import torch
from detectron2.engine import launch as detectron2_launch
from detectron2.utils import comm
from omegaconf import DictConfig

from salience_detr.utils.signals import ForwardedSignals

Main: TypeAlias = Callable[[argparse.Namespace, DictConfig | None], None]


def launch(main: Main, args: argparse.Namespace, config: DictConfig) -> None:
    """Call ``main(args, config)`` in every process; without a GPU the processes talk through gloo.

    Processes that detectron2's launcher starts get None for the config and make their own: a config
    file may register data sets and define functions, neither of which can be handed to another
    process.
    """
    # torchrun has started this process as one of several.
    if "LOCAL_RANK" in os.environ and "WORLD_SIZE" in os.environ:
        init_torchrun_process()
        try:
            main(args, config)
        finally:
            torch.distributed.destroy_process_group()

    elif args.num_gpus * args.num_machines == 1:
        main(args, config)

    else:
        sizes = (args.num_gpus, args.num_machines, args.machine_rank)
        with ForwardedSignals():
            detectron2_launch(main, *sizes, dist_url=args.dist_url, args=(args, None))


def init_torchrun_process() -> None:
    """Join the process group of torchrun, as its environment variables say."""
    backend = "gloo"
    if torch.cuda.is_available():
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
    if comm.get_world_size() > 1 and not torch.cuda.is_available():
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // comm.get_local_size()))
