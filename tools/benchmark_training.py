#!/usr/bin/env python
"""Measure images per second and peak memory of training, by variant, and of the data loader alone.

benchmark_training.py --config-file F --data-dir D [--steps 5] [--only plain] key=value ...

Each variant (mixed precision, activation checkpointing, gradient accumulation, ...) trains on the
same images in a process of its own.
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

import torch
from detectron2.config import instantiate
from detectron2.utils.events import EventStorage
from omegaconf import DictConfig
from tabulate import tabulate
from tqdm import tqdm

from salience_detr.config import ConfigError, load_config, resolve_amp, resolve_device
from salience_detr.data import DatasetError, batches
from salience_detr.engine.own_data import add_data_arguments, use_own_data
from salience_detr.engine.train import build_model, build_optimizer, compile_model
from salience_detr.engine.trainer import Trainer
from salience_detr.utils.errors import print_error

AMP = "train.amp.enabled=True"
ENCODER = "model.encoder.use_checkpoint=True"
BACKBONE = "model.backbone.use_checkpoint=True"
VARIANTS = {
    "plain": [],
    "amp": [AMP],
    "encoder checkpointed": [ENCODER],
    "encoder and backbone checkpointed": [ENCODER, BACKBONE],
    "amp, both checkpointed": [AMP, ENCODER, BACKBONE],
    "accumulate 2": ["train.accumulate=2"],
    "accumulate 4": ["train.accumulate=4"],
    "channels last": ["train.channels_last=True"],
    "amp, channels last": [AMP, "train.channels_last=True"],
    "compile": ["train.compile=True"],
}
NUM_LOADED = 200  # images that the loader alone is timed with


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)

    add = parser.add_argument
    add("--config-file", required=True, metavar="FILE")
    add("--steps", type=int, default=5, help="steps to time, after one that is not timed")
    add("--only", action="append", choices=VARIANTS, help="repeatable (default: all but compile)")
    add("opts", nargs="*", metavar="key=value", help="overrides of the config")
    add_data_arguments(parser)

    args = parser.parse_intermixed_args(argv)
    args.only = args.only or [name for name in VARIANTS if name != "compile"]
    return args


def make_config(args: argparse.Namespace, overrides: list[str]) -> DictConfig:
    config = load_config(args.config_file, [*args.opts, *overrides])
    use_own_data(config, args)
    return config


def time_training(args: argparse.Namespace, overrides: list[str]) -> tuple[float, float]:
    """Return the median seconds of a step, and the peak memory in MiB.

    That is the memory of tensors on a GPU, of the whole process on the CPU.
    """
    config = make_config(args, overrides)
    device = resolve_device(config.train.device)

    # The variants start from the same weights.
    torch.manual_seed(0)
    model = build_model(config)
    compile_model(config, model)

    trainer = Trainer(
        model=model,
        data_loader=instantiate(config.dataloader.train),
        optimizer=build_optimizer(config, model),
        clip_grad_norm=config.train.clip_grad_norm,
        amp_dtype=resolve_amp(config.train.amp, device),
        accumulate=config.train.accumulate,
    )

    times = []
    with EventStorage() as trainer.storage:
        for trainer.iter in range(args.steps + 1):
            start = time.perf_counter()
            trainer.run_step()
            if device.type == "cuda":
                torch.cuda.synchronize()
            times.append(time.perf_counter() - start)

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated() / 2**20
    return statistics.median(times[1:]), peak


def time_loading(args: argparse.Namespace, workers: int) -> float:
    """Return the images per second that the loader alone delivers."""
    config = make_config(args, [f"dataloader.train.num_workers={workers}"])
    batch_size = config.dataloader.train.total_batch_size
    stream = batches(instantiate(config.dataloader.train), 0)
    next(stream)  # starts the workers

    start = time.perf_counter()
    num_images = 0
    for batch in itertools.islice(stream, -(-NUM_LOADED // batch_size)):
        num_images += len(batch)
    return num_images / (time.perf_counter() - start)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    try:
        batch_size = make_config(args, []).dataloader.train.total_batch_size
    except (ConfigError, DatasetError) as error:
        print_error(error)
        return 2

    # Neither memory nor compiled code of one variant reaches the next.
    rows = []
    spawn = multiprocessing.get_context("spawn")
    for name in tqdm(args.only, desc="variants"):
        overrides = ["train.amp.enabled=False", *VARIANTS[name]]
        with ProcessPoolExecutor(1, mp_context=spawn) as pool:
            seconds, peak = pool.submit(time_training, args, overrides).result()
        rows.append((name, batch_size / seconds, seconds, peak))

    device = f"{torch.get_num_threads()} CPU threads"
    if torch.cuda.is_available():
        device = torch.cuda.get_device_name()

    print(f"{args.config_file}, batch {batch_size}, {device}, PyTorch {torch.__version__}\n")
    headers = ["training", "images/s", "s/step", "peak memory (MiB)"]
    print(tabulate(rows, headers, floatfmt=("", ".2f", ".2f", ".0f"), tablefmt="github"), "\n")

    rates = [(workers, time_loading(args, workers)) for workers in (0, 1, 2)]
    print(tabulate(rates, ("loader workers", "images/s"), floatfmt=".0f", tablefmt="github"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
