"""Starting the processes of a run: one, several by detectron2's launcher, or those that torchrun started."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from contextlib import nullcontext

import torch
from detectron2.engine import launch as detectron2_launch
from detectron2.utils import comm

from salience_detr.utils.signals import ForwardedSignals


def launch(main: Callable[[argparse.Namespace], None], args: argparse.Namespace) -> None:
    """Call ``main(args)`` in every process; without a GPU the processes talk through gloo."""
    if "LOCAL_RANK" in os.environ and "WORLD_SIZE" in os.environ:
        _run_under_torchrun(main, args)
        return
    with ForwardedSignals() if args.num_gpus * args.num_machines > 1 else nullcontext():
        detectron2_launch(
            main,
            args.num_gpus,
            num_machines=args.num_machines,
            machine_rank=args.machine_rank,
            dist_url=args.dist_url,
            args=(args,),
        )


def any_process(flag: bool) -> bool:
    """Whether the flag is set in some process; every process calls this."""
    if comm.get_world_size() == 1:
        return flag
    device = "cuda" if torch.distributed.get_backend() == "nccl" else "cpu"
    flags = torch.tensor(int(flag), device=device)
    torch.distributed.all_reduce(flags, torch.distributed.ReduceOp.MAX)
    return bool(flags)


def _run_under_torchrun(
    main: Callable[[argparse.Namespace], None], args: argparse.Namespace
) -> None:
    local_rank, local_size = (
        int(os.environ["LOCAL_RANK"]),
        int(os.environ.get("LOCAL_WORLD_SIZE", os.environ["WORLD_SIZE"])),
    )
    has_gpu = torch.cuda.is_available()
    if has_gpu:
        torch.cuda.set_device(local_rank)
    torch.distributed.init_process_group("nccl" if has_gpu else "gloo")
    comm.create_local_process_group(local_size)
    try:
        main(args)
    finally:
        torch.distributed.destroy_process_group()


def share_cpu_threads() -> None:
    """Give each process of this machine its part of the cores, where all would else use all of them."""
    if comm.get_world_size() > 1 and not torch.cuda.is_available():
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // comm.get_local_size()))
