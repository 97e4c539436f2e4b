"""Measure speed and memory of training, by variant, and of the data loader alone."""

from __future__ import annotations

import argparse
import math
import multiprocessing
import statistics
from concurrent.futures import ProcessPoolExecutor

import torch
from detectron2.config import instantiate
from detectron2.utils.events import EventStorage
from omegaconf import DictConfig
from tabulate import tabulate
from tqdm import tqdm

from salience_detr.benchmark.report import PrintedTable, machine
from salience_detr.benchmark.timing import time_calls
from salience_detr.cli.arguments import run_program
from salience_detr.cli.flags.benchmark_training import VARIANTS, parse_args
from salience_detr.config import load_config, resolve_amp, resolve_device, set_matmul_precision
from salience_detr.data import batches
from salience_detr.engine.compilation import compile_model, set_memory_format, use_fast_products
from salience_detr.engine.own_data import use_own_data
from salience_detr.engine.run_flags import use_run_flags
from salience_detr.engine.train import build_model, build_optimizer
from salience_detr.engine.trainer import Trainer
from salience_detr.utils.process_memory import peak_memory

NUM_LOADED = 200  # images that the loader alone is timed with
COLUMNS = {"training": 33, "images/s": 8, "s/step": 6, "peak memory (MiB)": 17}


def make_config(args: argparse.Namespace, overrides: list[str]) -> DictConfig:
    overrides = [*args.opts, *overrides]
    config = load_config(args.config_file, overrides, trust=args.trust_config)
    use_run_flags(config, args, args.opts)
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
    set_matmul_precision(config)
    model = build_model(config)
    set_memory_format(config, model)
    use_fast_products(config, model)
    compile_model(config, model)

    trainer = Trainer(
        model=model,
        data_loader=instantiate(config.dataloader.train),
        optimizer=build_optimizer(config, model),
        clip_grad_norm=config.train.clip_grad_norm,
        amp_dtype=resolve_amp(config.train.amp, device),
        accumulate=config.train.accumulate,
    )

    with EventStorage() as trainer.storage:
        time_calls(trainer.run_step, 1)
        milliseconds = time_calls(trainer.run_step, args.steps)

    peak = peak_memory() / 2**20
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated() / 2**20
    return statistics.median(milliseconds) / 1e3, peak


def time_loading(args: argparse.Namespace, workers: int) -> float:
    """Return the images per second that the loader alone delivers."""
    config = make_config(args, [f"dataloader.train.num_workers={workers}"])
    batch_size = config.dataloader.train.total_batch_size
    stream = batches(instantiate(config.dataloader.train), 0)
    next(stream)  # starts the workers

    num_batches = math.ceil(NUM_LOADED / batch_size)
    milliseconds = time_calls(lambda: next(stream), num_batches)
    return num_batches * batch_size * 1e3 / sum(milliseconds)


def run(args: argparse.Namespace) -> None:
    """Print a table of the variants, and one of the loader alone."""
    batch_size = make_config(args, []).dataloader.train.total_batch_size

    # Neither memory nor compiled code of one variant reaches the next.
    circumstances = f"{machine('auto')}, PyTorch {torch.__version__}"
    print(f"{args.config_file}, batch {batch_size}, {circumstances}\n")
    table = PrintedTable(COLUMNS)
    spawn = multiprocessing.get_context("spawn")
    for name in tqdm(args.only, desc="variants"):
        overrides = ["train.amp.enabled=False", *VARIANTS[name]]
        with ProcessPoolExecutor(1, mp_context=spawn) as pool:
            seconds, peak = pool.submit(time_training, args, overrides).result()
        table.add((name, batch_size / seconds, f"{seconds:.3f}", f"{peak:.0f}"))

    print()
    rates = [(workers, time_loading(args, workers)) for workers in (0, 1, 2)]
    print(tabulate(rates, ("loader workers", "images/s"), floatfmt=".0f", tablefmt="github"))


def main(argv: list[str] | None = None) -> int:
    return run_program(run, parse_args(argv))
