#!/usr/bin/env python
"""Images per second and peak memory of training: plain, mixed precision, recomputed activations, accumulation.

tools/benchmark_training.py --config-file F --data-dir D [--steps 5] [--only plain] key=value ...

Each variant trains on the same images in a process of its own. The second table is what the loader alone delivers.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import resource
import statistics
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import torch
from detectron2.config import instantiate
from detectron2.utils.events import EventStorage
from tabulate import tabulate
from tqdm import tqdm

from salience_detr.config import ConfigError, load_config, resolve_amp, resolve_device
from salience_detr.data import DatasetError, batches
from salience_detr.engine.own_data import add_data_arguments, use_own_data
from salience_detr.engine.train import build_model, compile_model
from salience_detr.engine.trainer import Trainer

AMP, ENCODER, BACKBONE = (
    "train.amp.enabled=True",
    "model.encoder.use_checkpoint=True",
    "model.backbone.use_checkpoint=True",
)
VARIANTS = {
    "plain": [],
    "amp": [AMP],
    "recompute encoder": [ENCODER],
    "recompute encoder and backbone": [ENCODER, BACKBONE],
    "amp, recompute both": [AMP, ENCODER, BACKBONE],
    "accumulate 2": ["train.accumulate=2"],
    "accumulate 4": ["train.accumulate=4"],
    "channels last": ["train.channels_last=True"],
    "amp, channels last": [AMP, "train.channels_last=True"],
    "compile": ["train.compile=True"],
}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True, metavar="FILE")
    parser.add_argument("--steps", type=int, default=5, help="timed, after one that is not")
    parser.add_argument(
        "--only",
        action="append",
        choices=VARIANTS,
        help="may be repeated (default: all but compile)",
    )
    add_data_arguments(parser)
    parser.add_argument("opts", nargs="*", metavar="key=value", help="overrides of the config")
    args = parser.parse_intermixed_args(argv)
    args.only = args.only or [name for name in VARIANTS if name != "compile"]
    return args


def configure(args: argparse.Namespace, overrides: list[str]) -> Any:
    config = load_config(args.config_file, [*args.opts, *overrides])
    use_own_data(config, args)
    return config


def train_variant(args: argparse.Namespace, overrides: list[str]) -> dict[str, float]:
    """Seconds per step and peak memory in MiB: of the GPU, or all of the process's."""
    config = configure(args, overrides)
    torch.manual_seed(0)
    model = build_model(config)
    compile_model(config, model)
    config.optimizer.params.model = model
    device = resolve_device(config.train.device)
    trainer = Trainer(
        model=model,
        data_loader=instantiate(config.dataloader.train),
        optimizer=instantiate(config.optimizer),
        clip_grad_norm=config.train.clip_grad_norm,
        amp_dtype=resolve_amp(config.train.amp, device),
        accumulate=config.train.accumulate,
    )
    trainer.start_iter = 0
    times = []
    with EventStorage() as trainer.storage:
        for trainer.iter in range(args.steps + 1):
            start = time.perf_counter()
            trainer.run_step()
            if device.type == "cuda":
                torch.cuda.synchronize()
            times.append(time.perf_counter() - start)
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated() / 2**20
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    return {"seconds": statistics.median(times[1:]), "peak": peak}


def load_only(args: argparse.Namespace, workers: int, images: int = 200) -> float:
    """Images per second that the loader delivers."""
    config = configure(args, [f"dataloader.train.num_workers={workers}"])
    loader = instantiate(config.dataloader.train)
    batch = config.dataloader.train.total_batch_size
    stream = batches(loader, 0)
    next(stream)  # starts the workers
    count = -(-images // batch)
    start = time.perf_counter()
    for _ in itertools.islice(stream, count):
        pass
    return count * batch / (time.perf_counter() - start)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    try:
        batch = configure(args, []).dataloader.train.total_batch_size
    except (ConfigError, DatasetError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    rows = []
    spawn = multiprocessing.get_context("spawn")
    for name in tqdm(args.only, desc="variants"):
        with ProcessPoolExecutor(1, mp_context=spawn) as pool:
            found = pool.submit(
                train_variant, args, ["train.amp.enabled=False", *VARIANTS[name]]
            ).result()
        rows.append((name, batch / found["seconds"], found["seconds"], found["peak"]))
    device = (
        torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else f"{torch.get_num_threads()} CPU threads"
    )
    print(f"{args.config_file}, batch {batch}, {device}, PyTorch {torch.__version__}\n")
    headers = ("training", "images/s", "s/step", "peak memory (MiB)")
    print(tabulate(rows, headers=headers, floatfmt=("", ".2f", ".2f", ".0f"), tablefmt="github"))
    loading = [(workers, load_only(args, workers)) for workers in (0, 1, 2)]
    print(
        "\n"
        + tabulate(
            loading, headers=("loader workers", "images/s"), floatfmt=".0f", tablefmt="github"
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
