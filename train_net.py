#!/usr/bin/env python
"""Train or evaluate a model of a LazyConfig file.

train_net.py --config-file configs/surface_defects_tiny.py
train_net.py --config-file configs/salience_detr_r50_4scale_12ep.py --num-gpus 8
train_net.py --config-file F --eval-only --weights W --show-dir shown
train_net.py --config-file F --data-dir D --weights W train.output_dir=output/mine
torchrun --nproc-per-node 8 train_net.py --config-file F
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

from detectron2.utils import comm
from omegaconf import DictConfig
from torch.multiprocessing import ProcessExitedException

from salience_detr.checkpoint import CheckpointError, load_weights
from salience_detr.config import ConfigError, load_config
from salience_detr.data import DatasetError, DataWorkerError, ImageReadError
from salience_detr.engine.launch import launch, share_cpu_threads
from salience_detr.engine.own_data import add_data_arguments, use_own_data
from salience_detr.engine.train import build_model, save_config, setup_run, train
from salience_detr.engine.trainer import FetchError
from salience_detr.evaluation.coco_evaluation import check_show_dir, evaluate, show_evaluation
from salience_detr.utils.errors import print_error

USER_ERRORS = (
    CheckpointError, ConfigError, DatasetError, DataWorkerError, FloatingPointError, ImageReadError, OSError, ValueError
)  # fmt: skip


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--config-file",
        required=True,
        metavar="FILE",
        help="a LazyConfig file, such as configs/*.py",
    )
    parser.add_argument(
        "--resume", action="store_true", help="go on from the last checkpoint in train.output_dir"
    )
    parser.add_argument("--eval-only", action="store_true", help="evaluate the weights")
    parser.add_argument(
        "--show-dir",
        type=Path,
        metavar="DIR",
        help="with --eval-only: draw truth and detections here",
    )
    parser.add_argument(
        "--weights",
        metavar="FILE",
        help="to start from, or to evaluate; sets train.init_checkpoint",
    )
    parser.add_argument(
        "--num-gpus",
        type=int,
        default=1,
        help="processes on this machine (without a GPU: on the CPU)",
    )
    parser.add_argument("--num-machines", type=int, default=1)
    parser.add_argument(
        "--machine-rank", type=int, default=0, help="number of this machine, from 0"
    )
    parser.add_argument(
        "--dist-url", default="auto", help="tcp://HOST:PORT of machine 0, for several machines"
    )
    add_data_arguments(parser)
    parser.add_argument(
        "opts", nargs="*", metavar="key=value", help="overrides, such as train.max_iter=1000"
    )
    args = parser.parse_intermixed_args(argv)
    for name in ("num_gpus", "num_machines"):
        if getattr(args, name) < 1:
            parser.error(
                f"--{name.replace('_', '-')} must be at least 1, got {getattr(args, name)}"
            )
    if args.show_dir is not None and not args.eval_only:
        parser.error(f"--show-dir {args.show_dir} draws what --eval-only finds: add --eval-only")
    return args


def make_config(args: argparse.Namespace) -> DictConfig:
    """The config that a command line describes: the file, its overrides, then the other flags.

    Raises:
        ConfigError, DatasetError: see :func:`load_config` and :func:`use_own_data`.
    """
    config = load_config(args.config_file, args.opts)
    overridden = {word.partition("=")[0].lstrip("+") for word in args.opts}
    use_own_data(config, args, overridden, needed=("val",) if args.eval_only else ("train", "val"))
    if args.weights:
        config.train.init_checkpoint = args.weights
    return config


def main(args: argparse.Namespace) -> None:
    """The work of one process; a user's mistake becomes one line on the console, and a traceback in log.txt."""
    try:
        work(args)
    except FetchError as error:
        if error.reason is not None:
            log_traceback()
            print_error(error.reason)
        comm.synchronize()  # it has been told before the launcher ends all processes with the first
        sys.exit(2)
    except USER_ERRORS as error:
        log_traceback()
        print_error(error)
        sys.exit(2)


def log_traceback() -> None:
    """Write the traceback of the current exception to log.txt, but not to the console."""
    logger = logging.getLogger("salience_detr")
    logging.raiseExceptions = False  # the disk may be full
    record = logger.makeRecord(
        logger.name, logging.ERROR, __file__, 0, "stopped", (), sys.exc_info()
    )
    for handler in logger.handlers:
        if getattr(handler, "stream", None) is not sys.stdout:
            handler.emit(record)


def work(args: argparse.Namespace) -> None:
    share_cpu_threads()
    config = make_config(args)
    setup_run(config)
    if not args.eval_only:
        train(config, resume=args.resume)
        return
    if not config.train.init_checkpoint:
        raise ConfigError("--eval-only needs weights: add --weights FILE")
    if args.show_dir is not None:
        check_show_dir(config, args.show_dir)
    if comm.is_main_process() and not (Path(config.train.output_dir) / "config.yaml").is_file():
        save_config(config)
    model = build_model(config)
    load_weights(model, config.train.init_checkpoint)
    evaluate(config, model.eval())
    if args.show_dir is not None and comm.is_main_process():
        show_evaluation(config, args.show_dir)


def run(argv: list[str] | None = None) -> int:
    """Run the command line; a user's mistake becomes one line."""
    args = parse_args(argv)
    try:
        make_config(args)  # typos are found before processes are started
    except USER_ERRORS as error:
        print_error(error)
        return 2
    try:
        launch(main, args)
    except SystemExit as stop:
        return int(stop.code or 0)
    except ProcessExitedException as failure:
        return failure.exit_code or 1
    return 0


if __name__ == "__main__":
    sys.exit(run())
