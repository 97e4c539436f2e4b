"""Train or evaluate the model of a LazyConfig file."""

from __future__ import annotations

import argparse
import copy
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from detectron2.config import instantiate
from detectron2.utils import comm
from omegaconf import DictConfig

from salience_detr.checkpoint import load_weights, read_classes
from salience_detr.cli.arguments import run_program, user_errors
from salience_detr.cli.flags.train import parse_args
from salience_detr.config import ConfigError
from salience_detr.data.classes import ClassList
from salience_detr.data.datasets import as_list, dataset_classes
from salience_detr.data.split_classes import check_known
from salience_detr.engine.augmentation_choice import choose_augmentation
from salience_detr.engine.evaluation_record import read_iteration, record_evaluation
from salience_detr.engine.launch import ProcessDiedError, end_after_peer, is_lost_peer, launch
from salience_detr.engine.memory import is_out_of_memory, memory_error
from salience_detr.engine.own_data import training_classes, use_own_data
from salience_detr.engine.run_flags import use_run_flags
from salience_detr.engine.run_folder import locked_folder
from salience_detr.engine.train import build_model, save_config, setup_run, train
from salience_detr.engine.trainer import StopError
from salience_detr.engine.tuning import use_tuning
from salience_detr.evaluation.coco_evaluation import check_show_dir, evaluate, show_evaluation
from salience_detr.modeling import SalienceDETR
from salience_detr.modeling.optimization import optimize_model
from salience_detr.pretrained import load_config_of
from salience_detr.utils.drawing_options import drawing_options
from salience_detr.utils.errors import print_error, tolerate_names

USER_ERRORS: tuple[type[Exception], ...] = (*user_errors(), FloatingPointError, RecursionError)


def make_config(args: argparse.Namespace) -> DictConfig:
    """Load the config file of a command line, apply its overrides, then the other flags.

    Raises:
        ConfigError, DatasetError: see :func:`load_config` and :func:`use_own_data`.
    """
    trust = args.trust_config
    config = load_config_of(args.weights, args.config_file, args.opts, trust=trust)
    overridden = {word.partition("=")[0].lstrip("+") for word in args.opts}

    needed = ["val"]
    if not args.eval_only:
        needed.append("train")
    use_run_flags(config, args, args.opts)
    use_tuning(config, args)
    choose_augmentation(config, args.augmentation, overridden)
    use_own_data(config, args, overridden, needed)

    # The config of weights names the folder of the run that they are from.
    goes_on = args.eval_only or args.resume or args.config_file
    output_dir = Path(config.train.output_dir)
    if not goes_on and (output_dir / "config.yaml").is_file():
        raise ConfigError(
            f"the config of {args.weights} names the folder of an earlier run, {output_dir}: add "
            "--output DIR for this one, or --resume"
        )
    return config


def do_test(args: argparse.Namespace, config: DictConfig) -> None:
    """Evaluate the weights on the test set and, if asked to, draw the detections.

    Raises:
        ConfigError, CheckpointError, DatasetError, OSError: weights, data or folders are not
        usable.
    """
    if not config.train.init_checkpoint:
        raise ConfigError("--eval-only needs weights: add --weights FILE")
    if args.show_dir is not None:
        check_show_dir(config, args.show_dir)
    options = drawing_options(args)

    # Rows without names are the classes of the training set, in order, where it is at hand.
    trained_classes = read_classes(config.train.init_checkpoint)
    rows_in_order = None
    if trained_classes is None and not args.ignore_class_names:
        trained_classes = rows_in_order = training_classes(config, args)
    data_classes = evaluated_classes(config, trained_classes, by_name=not args.ignore_class_names)
    if data_classes is not None:
        options.palette(data_classes.names)  # an unknown class is told before the evaluation

    # The config of a training run in this folder stays.
    output_dir = Path(config.train.output_dir)
    if comm.is_main_process() and not (output_dir / "config.yaml").is_file():
        save_config(config)

    model = build_model(config)
    row_classes = load_weights(
        model,
        config.train.init_checkpoint,
        classes=rows_in_order or data_classes,
        ignore_class_names=args.ignore_class_names,
    )

    model.eval()
    if isinstance(model, SalienceDETR):
        model = optimize_model(model, args.optimize or "fused")
    elif args.optimize is not None:
        name = type(model).__name__
        raise ConfigError(f"--optimize {args.optimize} is for SalienceDETR, not for {name}")

    # Without names, the classes of each test set are taken for the model's, in order.
    class_names: Sequence[str] | None = ()
    if row_classes is not None:
        class_names = None if args.ignore_class_names else row_classes.names
    weights = config.train.init_checkpoint
    iteration = read_iteration(weights)
    results = evaluate(config, model, class_names=class_names, weights=weights, iteration=iteration)
    if comm.is_main_process():
        record_evaluation(config, results, iteration)

    if args.show_dir is not None and comm.is_main_process():
        show_evaluation(config, args.show_dir, options)


def evaluated_classes(
    config: DictConfig, trained: ClassList | None, *, by_name: bool
) -> ClassList | None:
    """Load the test sets, and give the model of the config its number of classes, in place.

    Args:
        config: of the run.
        trained: classes of the weights, of which a data set may have fewer. If they are unknown,
            the model has the classes of the test sets.
        by_name: whether the weights must have all classes of the test sets.

    Returns:
        The classes of the test sets; None if they are unknown, or if several sets have different
        ones: these are evaluated with all classes of the weights.

    Raises:
        DatasetError: a data set is not usable.
    """
    # Each by itself, as it is evaluated. The names of its classes are known once it is loaded.
    found = []
    for name in as_list(config.dataloader.test.dataset.names):
        dataset = copy.copy(config.dataloader.test.dataset)
        dataset.names = name
        instantiate(dataset)
        found.append(dataset_classes(name))

    # Of a single data set, the loading of the weights says more.
    if trained is not None and by_name and len(found) > 1:
        for other in filter(None, found):
            check_known(trained.names, other, "the model")

    classes = found[0]
    if classes is None or any(other != classes for other in found):
        classes = None
    model_classes = trained or classes
    if model_classes is None:
        return None

    num_classes = config.model.get("num_classes")
    if num_classes not in (None, len(model_classes)):
        logging.getLogger("salience_detr").warning(
            "model.num_classes=%d, as the %s (not %d): %s",
            len(model_classes),
            "weights have" if trained else "data set has",
            num_classes,
            model_classes,
        )
        config.model.num_classes = len(model_classes)
    return classes


def main(args: argparse.Namespace, config: DictConfig | None) -> None:
    """Train or evaluate in one of the processes.

    A mistake of the user becomes one line on the console, and a traceback in log.txt.

    Args:
        args: of the command line.
        config: made from them; None makes it here (see :func:`launch`).
    """
    tolerate_names([sys.stdout, sys.stderr])
    try:
        config = config or make_config(args)
        if args.eval_only:
            setup_run(config)
            do_test(args, config)
            return

        with locked_folder(config.train.output_dir):
            setup_run(config)
            train(config, resume=args.resume)

    except StopError as error:
        if error.reason is not None:
            log_traceback()
            print_error(error.reason)
        # The launcher ends all processes with the first one: it waits until the error is printed.
        comm.synchronize()
        sys.exit(2)

    except USER_ERRORS as error:
        log_traceback()
        print_error(error)
        sys.exit(2)

    except (RuntimeError, MemoryError) as error:
        if config is not None and is_out_of_memory(error):
            log_traceback()
            print_error(memory_error(error, config, training=not args.eval_only))
            sys.exit(2)
        if not isinstance(error, RuntimeError) or not is_lost_peer(error):
            raise
        log_traceback()
        end_after_peer()


def log_traceback() -> None:
    """Write the traceback of the current exception to log.txt, but not to the console."""
    logger = logging.getLogger("salience_detr")
    logging.raiseExceptions = False  # the disk may be full

    place = (logging.ERROR, __file__, 0)
    record = logger.makeRecord(logger.name, *place, "stopped", (), sys.exc_info())
    for handler in logger.handlers:
        if getattr(handler, "stream", None) is not sys.stdout:
            handler.emit(record)


def run(argv: list[str] | None = None) -> int:
    """Run the command line; a mistake of the user becomes one line and the exit code 2."""
    return start(parse_args(argv))


def start(args: argparse.Namespace) -> int:
    """Train or evaluate as a parsed command line says, and return the exit code."""
    try:
        return run_program(start_processes, args)
    except SystemExit as stop:
        return int(stop.code or 0)
    except ProcessDiedError as error:
        print_error(error)
        return error.exit_code


def start_processes(args: argparse.Namespace) -> None:
    """Run :func:`main` in every process."""
    # Mistakes are found before processes are started.
    config = make_config(args)
    launch(main, args, config)
