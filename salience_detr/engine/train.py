"""Training run of a config."""

from __future__ import annotations

import copy
import logging
import threading
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
import torch
from detectron2.config import instantiate
from detectron2.engine import HookBase, hooks
from detectron2.solver import LRMultiplier
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng
from detectron2.utils.logger import setup_logger
from omegaconf import DictConfig
from timm.utils import ModelEmaV3
from torch import nn

from salience_detr.checkpoint import start_from
from salience_detr.config import (
    ConfigError,
    check_arguments,
    load_config,
    resolve_amp,
    resolve_device,
    set_matmul_precision,
    to_yaml,
)
from salience_detr.data.datasets import check_class_count, dataset_classes
from salience_detr.data.loader import keep_value_range, seeded
from salience_detr.engine.checkpointing import TrainingCheckpointer, cut_metrics
from salience_detr.engine.checks import (
    check_room,
    check_test_classes,
    check_test_set,
    check_training_set,
    frozen_tensors,
    warn_of_random_layers,
)
from salience_detr.engine.compilation import (
    compile_model,
    distribute,
    set_memory_format,
    use_fast_products,
)
from salience_detr.engine.console import quiet_console
from salience_detr.engine.data_order import data_order
from salience_detr.engine.determinism import use_deterministic_algorithms
from salience_detr.engine.duration import RunClock, start_clock
from salience_detr.engine.early_stopping import EarlyStop
from salience_detr.engine.freezing import freeze
from salience_detr.engine.hooks import (
    BestCheckpoint,
    EMAHook,
    EvaluationHook,
    InterruptHook,
    PeriodicCheckpointHook,
    PreviewHook,
)
from salience_detr.engine.launch import share_cpu_threads
from salience_detr.engine.optimizer import fused_options, keep_implementation, learning_rate
from salience_detr.engine.previews import preview_images
from salience_detr.engine.progress import ProgressHook
from salience_detr.engine.run_report import log_start
from salience_detr.engine.run_summary import log_summary
from salience_detr.engine.trainer import FetchError, Trainer
from salience_detr.engine.tuning import (
    check_tuning,
    first_hooks,
    frozen_names,
    last_hooks,
)
from salience_detr.engine.writers import MetricsWriter, build_writers, wandb_run
from salience_detr.evaluation.coco_evaluation import (
    best_metric_of,
    choose_weights,
    evaluate_with_ema,
)
from salience_detr.utils.config_paths import make_paths_absolute
from salience_detr.utils.errors import tolerate_names
from salience_detr.utils.files import check_output_dir, is_disk_full, write_text

logger = logging.getLogger(__name__)


def setup_run(config: DictConfig) -> None:
    """Prepare output folder, log, threads and seed; every process does before it builds anything.

    Raises:
        OSError: the output folder cannot be written to.
    """
    output_dir = config.train.output_dir
    check_output_dir(output_dir)
    for name in ("detectron2", "fvcore", "salience_detr"):
        log = setup_logger(output_dir, distributed_rank=comm.get_rank(), name=name)
        quiet_console(log)
        tolerate_names(getattr(handler, "stream", None) for handler in log.handlers)

    # A log that cannot be written, as on a full disk, does not end a run by itself.
    logging.raiseExceptions = False
    threading.excepthook = report_thread_error

    # The exception itself is reported by whoever catches it.
    train_loop = logging.getLogger("detectron2.engine.train_loop")
    train_loop.addFilter(lambda record: "Exception during" not in record.msg)

    if config.train.get("deterministic", False):
        use_deterministic_algorithms()
    set_matmul_precision(config)
    share_cpu_threads()
    seed_all_rng(config.train.seed)


def report_thread_error(failure: threading.ExceptHookArgs) -> None:
    """Print the traceback of a thread, as Python does, but not of a file of TensorBoard's.

    TensorBoard writes in a thread. On a full disk, or without its folder, the run itself ends with
    one line at its next write.
    """
    of_tensorboard = type(failure.thread).__module__.startswith("tensorboard.")
    if not (of_tensorboard and isinstance(failure.exc_value, OSError)):
        threading.__excepthook__(failure)


def save_config(config: DictConfig) -> None:
    """Write ``config.yaml`` to the output folder; it is complete or not there.

    Its paths are absolute, so that it can be used from any folder. A config whose functions are its
    own cannot be loaded from there; a warning says so.
    """
    path = Path(config.train.output_dir) / "config.yaml"
    try:
        saved = copy.deepcopy(config)
        make_paths_absolute(saved, [Path.cwd()], must_exist=False)
        write_text(path, to_yaml(saved))
        load_config(path)
    except ConfigError as error:
        logger.warning("%s; go on with the config file that this run was started with", error)


def train(config: DictConfig, *, resume: bool) -> None:
    """Train as the config says; with ``resume`` go on from the last complete checkpoint.

    Raises:
        DatasetError, CheckpointError, OSError: something is wrong with the data, the weights or the
            output folder; found before the first step where that is possible.
        FetchError: an image cannot be read; the finished steps are saved.
        FloatingPointError: the loss is not finite.
    """
    # Mistakes in the data end the run before anything is built.
    check_tuning(config)
    check_test_set(config)
    check_arguments(config, "dataloader.train.sampler")
    with seeded(config.train.seed):  # of a sampler that draws its own seed
        loader = instantiate(config.dataloader.train)
    keep_value_range(config, loader)
    check_class_count(config.dataloader.train.dataset.names, config.model.get("num_classes"))
    check_test_classes(config)
    check_training_set(config, loader)

    # The EMA is a copy of the model in its memory format, before stages are compiled.
    model = build_model(config)
    set_memory_format(config, model)
    freeze(model, frozen_names(config))
    optimizer = build_optimizer(config, model)
    ema = build_ema(config, model)
    use_fast_products(config, model)
    compile_model(config, model)

    max_iter = config.train.max_iter
    scheduler = LRMultiplier(optimizer, instantiate(config.lr_multiplier), max_iter)
    trainer = Trainer(
        model=distribute(model),
        data_loader=loader,
        optimizer=optimizer,
        clip_grad_norm=config.train.clip_grad_norm,
        amp_dtype=resolve_amp(config.train.amp, resolve_device(config.train.device)),
        accumulate=config.train.accumulate,
        seed=config.train.seed,
    )

    checkpointer = build_checkpointer(config, model, ema, scheduler, trainer)
    check_room(config, checkpointer)
    start = start_or_resume(config, checkpointer, ema, resume)

    # Not before: the config in the folder stays if this run may not go on there.
    if comm.is_main_process():
        save_config(config)

    log_start(config, model, loader, start)
    if start >= max_iter:
        logger.info("all %d iterations are done already", max_iter)
    clock = start_clock(config, model, max_iter - start)

    interrupt = InterruptHook(checkpointer)
    with interrupt.stops, wandb_run(config.train.output_dir, **config.train.wandb):
        trainer.register_hooks([hooks.IterationTimer(), hooks.LRScheduler(scheduler=scheduler)])
        run_hooks, best = build_hooks(config, model, ema, checkpointer, start, clock)
        trainer.register_hooks(run_hooks)
        trainer.register_hooks([interrupt])
        run_steps(trainer, checkpointer, start, max_iter)
    if comm.is_main_process():
        log_summary(config, clock, best, start)


def build_model(config: DictConfig) -> nn.Module:
    """Build the model of a config, randomly initialized, on its device."""
    return instantiate(config.model).to(resolve_device(config.train.device))


def build_optimizer(config: DictConfig, model: nn.Module) -> torch.optim.Optimizer:
    """Build the optimizer of a config for a model; see :func:`learning_rate`."""
    settings = config.optimizer
    rate = settings.lr
    settings.lr = learning_rate(config)
    if settings.lr != rate:
        batch_size = config.dataloader.train.total_batch_size
        logger.info("learning rate %.3g for batches of %d", settings.lr, batch_size)

    options = fused_options(settings, next(model.parameters()).device)
    settings.params.model = model
    settings.update(options)
    optimizer: torch.optim.Optimizer = instantiate(settings)
    optimizer.register_load_state_dict_pre_hook(keep_implementation)

    # The config is saved, and a run may start from it again, on another device too.
    settings.params.model = None
    settings.lr = rate
    for name in options:
        del settings[name]
    return optimizer


def build_ema(config: DictConfig, model: nn.Module) -> ModelEmaV3 | None:
    """Build the exponential moving average (EMA) of the weights, if the config asks for one.

    It follows quickly at first (after i steps its decay is at most 1 - i^(-2/3)), so that the
    random weights of the beginning are soon forgotten.

    Raises:
        ConfigError: the decay is not in (0, 1).
    """
    if not config.train.ema.enabled:
        return None

    decay = config.train.ema.decay
    if not 0 < decay < 1:
        raise ConfigError(f"train.ema.decay is {decay}; it lies between 0 and 1, such as 0.9998")
    return ModelEmaV3(model, decay=decay, use_warmup=True)


def build_checkpointer(
    config: DictConfig,
    model: nn.Module,
    ema: ModelEmaV3 | None,
    scheduler: LRMultiplier,
    trainer: Trainer,
) -> TrainingCheckpointer:
    """Build the checkpointer of all that the run needs to go on exactly."""
    # The settings come first: what else does not fit follows from them.
    checkpointer = TrainingCheckpointer(
        model,
        config.train.output_dir,
        max_to_keep=config.train.checkpointer.max_to_keep,
        classes=dataset_classes(config.dataloader.train.dataset.names),
        data_order=data_order(config, trainer.data_loader),
        optimizer=trainer.optimizer,
        scheduler=scheduler,
        grad_scaler=trainer.grad_scaler,
    )

    if ema is not None:
        checkpointer.add_checkpointable("ema", ema.module)
    return checkpointer


def start_or_resume(
    config: DictConfig, checkpointer: TrainingCheckpointer, ema: ModelEmaV3 | None, resume: bool
) -> int:
    """Fill the model from its last checkpoint, or from the weights to start from.

    Returns:
        The number of finished iterations.
    """
    # All have looked at the folder before one writes into it.
    comm.synchronize()
    start = 0
    if resume:
        scheduler = checkpointer.checkpointables["scheduler"]
        rates = list(scheduler.base_lrs)
        start = checkpointer.resume()
        warn_of_other_rates(rates, scheduler.base_lrs)
    else:
        checkpointer.check_no_earlier_run()

    # A run may have ended after its last checkpoint, or before its first.
    if comm.is_main_process():
        cut_metrics(Path(config.train.output_dir) / "metrics.json", start)

    if start > 0:
        return start

    random = frozen_tensors(checkpointer.model)
    if config.train.init_checkpoint:
        start_from(
            checkpointer.model,
            config.train.init_checkpoint,
            classes=checkpointer.classes,
        )
        if ema is not None:
            ema.set(checkpointer.model)
    warn_of_random_layers(config, checkpointer.model, random)
    return start


def warn_of_other_rates(rates: Sequence[float], resumed: Sequence[float]) -> None:
    """Warn where the learning rates of a config are not those of the run that is resumed."""
    if not np.allclose(rates, resumed, atol=0):
        logger.warning(
            "the run goes on with its own learning rates, up to %.3g, and not with those of the "
            "config, up to %.3g; for other rates start a run from its weights (--weights)",
            max(resumed),
            max(rates),
        )


def build_hooks(
    config: DictConfig,
    model: nn.Module,
    ema: ModelEmaV3 | None,
    checkpointer: TrainingCheckpointer,
    start: int,
    clock: RunClock,
) -> tuple[list[HookBase], BestCheckpoint]:
    """Build the hooks of a run, in the order in which they act after a step.

    Returns:
        The hooks, and what keeps the best checkpoint.
    """
    settings = config.train
    output_dir = settings.output_dir
    run_hooks = first_hooks(config)
    ema_model = None
    best_metric = best_metric_of(config)
    if ema is not None:
        run_hooks.append(EMAHook(ema, model))
        ema_model = ema.module
    choice = choose_weights(config, ema_model)
    if choice != "raw" and not best_metric.startswith("ema/"):
        best_metric = f"ema/{best_metric}"

    # metrics.json has the line of a step before it is saved: a run that is resumed from there does
    # not come to that step again. A run shorter than the period is logged at its end.
    writers = build_writers(output_dir, start, settings.get("mlflow", {}))
    period = min(settings.log_period, settings.max_iter)
    metrics_writers = [writer for writer in writers if isinstance(writer, MetricsWriter)]
    run_hooks.append(hooks.PeriodicWriter(metrics_writers, period))

    # A step is saved before it is evaluated, so that an evaluation that fails costs no training.
    run_hooks.append(PeriodicCheckpointHook(checkpointer, settings.checkpointer.period))

    if comm.is_main_process():
        run_hooks.append(ProgressHook(clock, period))

    # The evaluation writes at once, so it has the writers as well.
    class_names = checkpointer.class_names
    evaluate = partial(evaluate_with_ema, config, model, ema_model, class_names)
    drawn_model = model
    weights = "weights"
    if ema_model is not None and choice != "raw":
        drawn_model = ema_model
        weights = "EMA weights"
    best = BestCheckpoint(checkpointer, best_metric)
    run_hooks.append(
        EvaluationHook(settings.eval_period, evaluate, best=best, writers=writers, clock=clock)
    )

    if comm.is_main_process() and settings.previews > 0:
        draw = partial(preview_images, config, drawn_model, class_names, weights)
        run_hooks.append(PreviewHook(draw, settings.eval_period, output_dir))

    # The others write after it, so that TensorBoard has the results in the same write.
    other_writers = [writer for writer in writers if writer not in metrics_writers]
    run_hooks.append(hooks.PeriodicWriter(other_writers, period))

    schedule = instantiate(config.lr_multiplier)
    run_hooks += last_hooks(config, best.metric, checkpointer=checkpointer, schedule=schedule)
    return run_hooks, best


def run_steps(
    trainer: Trainer, checkpointer: TrainingCheckpointer, start: int, max_iter: int
) -> None:
    """Train from an iteration to another one.

    Data that cannot be read, or a full disk, costs no finished step.

    Raises:
        FetchError, OSError, FloatingPointError: see :func:`train`.
    """
    try:
        # An early end has said why, and saved the final checkpoint.
        with suppress(EarlyStop):
            trainer.train(start, max_iter)
    except FetchError:
        # The step has changed nothing yet where its data cannot be read.
        if trainer.iter > start:
            checkpointer.save_periodic(trainer.iter)
        raise
    except OSError as error:
        if not is_disk_full(error) or "--resume" in str(error):
            raise
        raise OSError(
            f"no space is left for {checkpointer.output_dir} ({error}); make room and go on with "
            "--resume"
        ) from error
