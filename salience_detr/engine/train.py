"""A whole training run, from a config."""

from __future__ import annotations

import errno
import logging
import math
import os
from pathlib import Path
from typing import Any

import torch
from detectron2.config import LazyConfig, instantiate
from detectron2.engine import HookBase, hooks
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from detectron2.solver import LRMultiplier
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng
from detectron2.utils.events import EventWriter, JSONWriter, TensorboardXWriter
from detectron2.utils.logger import setup_logger
from omegaconf import DictConfig
from timm.utils import ModelEmaV3
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from salience_detr.checkpoint import start_from
from salience_detr.config import ConfigError, resolve_amp, resolve_device
from salience_detr.data.datasets import check_class_count, check_files, class_names_of
from salience_detr.engine.checkpointing import (
    DataOrder,
    LossNormalizer,
    TrainingCheckpointer,
    cut_metrics,
)
from salience_detr.engine.hooks import (
    BestCheckpointHook,
    CheckpointHook,
    ConsoleWriter,
    EMAHook,
    EvaluationHook,
    InterruptHook,
    PreviewHook,
    WandbWriter,
)
from salience_detr.engine.previews import preview_images
from salience_detr.engine.sync_batch_norm import use_cpu_sync_batch_norm
from salience_detr.engine.trainer import FetchError, Trainer
from salience_detr.evaluation.coco_evaluation import evaluate_with_ema
from salience_detr.layers.activation_checkpointing import checkpoints_batch_norm
from salience_detr.utils.files import check_output_dir
from salience_detr.utils.signals import StopSignals

logger = logging.getLogger(__name__)

PATIENCE = 3  # seconds

# Those of plain tensors; losses, matching and the making of queries depend on the numbers of boxes.
COMPILED_STAGES = (
    "backbone",
    "neck",
    "token_projection",
    "salience_filter",
    "encoder",
    "feature_fusion",
    "decoder",
)


def setup_run(config: DictConfig) -> None:
    """Output folder, log, seed. Every process calls this before it builds anything.

    Raises:
        OSError: the output folder cannot be written to.
    """
    output_dir = Path(config.train.output_dir)
    check_output_dir(output_dir)
    rank = comm.get_rank()
    for name in ("detectron2", "fvcore", "salience_detr"):
        setup_logger(str(output_dir), distributed_rank=rank, name=name)
    # The exception itself is reported by whoever catches it.
    logging.getLogger("detectron2.engine.train_loop").addFilter(
        lambda record: "Exception during" not in record.msg
    )
    seed_all_rng(config.train.seed)


def save_config(config: DictConfig) -> None:
    """Write ``config.yaml`` to the output folder, whole or not at all (``config.pkl`` if YAML cannot hold it)."""
    output_dir = Path(config.train.output_dir)
    LazyConfig.save(config, str(output_dir / "new.yaml"))
    for written in (output_dir / "new.yaml", output_dir / "new.pkl"):
        if written.is_file():
            os.replace(written, output_dir / f"config{written.suffix}")


def build_model(config: DictConfig) -> nn.Module:
    """The model of a config, randomly initialized, on its device."""
    return instantiate(config.model).to(resolve_device(config.train.device))


def build_average(config: DictConfig, model: nn.Module) -> ModelEmaV3 | None:
    """The moving average of the weights of a model, if the config asks for one.

    It follows quickly at first (after i steps its decay is at most 1 - i^(-2/3)), so that the random weights of
    the beginning are soon forgotten.

    Raises:
        ConfigError: the decay is not in (0, 1).
    """
    if not config.train.ema.enabled:
        return None
    if not 0 < config.train.ema.decay < 1:
        raise ConfigError(
            f"train.ema.decay is {config.train.ema.decay}; it lies between 0 and 1, such as 0.9998"
        )
    return ModelEmaV3(model, decay=config.train.ema.decay, use_warmup=True)


def build_optimizer(config: DictConfig, model: nn.Module) -> torch.optim.Optimizer:
    """The optimizer of a config for a model.

    With ``train.reference_batch_size`` the learning rate is multiplied by ``total_batch_size`` over it.
    """
    reference, batch = config.train.reference_batch_size, config.dataloader.train.total_batch_size
    if reference:
        config.optimizer.lr *= batch / reference
        logger.info(
            "learning rate %.3g, times %d / %d for the batch size",
            config.optimizer.lr,
            batch,
            reference,
        )
    config.optimizer.params.model = model
    optimizer: torch.optim.Optimizer = instantiate(config.optimizer)
    config.optimizer.params.model = None
    return optimizer


def compile_model(config: DictConfig, model: nn.Module) -> None:
    """Set the memory format of the convolutions and compile the stages, in place, as the config says.

    Raises:
        ConfigError: the stages cannot be compiled as they are.
    """
    if config.train.channels_last:
        model.to(memory_format=torch.channels_last)
    if config.train.compile:
        if any(checkpoints_batch_norm(module) for module in model.modules()):
            raise ConfigError(
                "train.compile=True cannot compile layers with BatchNorm whose activations are computed again; "
                "set model.backbone.use_checkpoint=False, or train.compile=False"
            )
        stages = [name for name, _ in model.named_children() if name in COMPILED_STAGES]
        logger.info("compiling %s", ", ".join(stages))
        for name in stages:
            model.get_submodule(name).compile()


def distribute(model: nn.Module) -> nn.Module:
    """Average gradients and BatchNorm statistics over the processes, if there are several."""
    if comm.get_world_size() == 1:
        return model
    on_gpu = next(model.parameters()).is_cuda
    model = (
        nn.SyncBatchNorm.convert_sync_batchnorm(model) if on_gpu else use_cpu_sync_batch_norm(model)
    )
    device_ids = [torch.cuda.current_device()] if on_gpu else None
    return DistributedDataParallel(model, device_ids=device_ids, broadcast_buffers=False)


def check_room(
    config: DictConfig,
    model: nn.Module,
    average: ModelEmaV3 | None,
    checkpointer: TrainingCheckpointer,
) -> None:
    """Make sure that the output folder has room for the checkpoints, beside those that are there.

    Raises:
        OSError: see :func:`check_output_dir`.
    """
    parameter_bytes = sum(p.numel() * p.element_size() for p in model.parameters())
    # A checkpoint holds the parameters, two moments of AdamW, the average; best, final, one being written come on top.
    checkpoint_bytes = (3 if average is None else 4) * parameter_bytes
    needed = (
        checkpoint_bytes * (config.train.checkpointer.max_to_keep + 3)
        - checkpointer.bytes_on_disk()
    )
    check_output_dir(config.train.output_dir, needed_bytes=max(checkpoint_bytes, needed))


def build_trainer(
    config: DictConfig, model: nn.Module, loader: DataLoader[Any], optimizer: torch.optim.Optimizer
) -> Trainer:
    """The trainer of this process, without hooks."""
    return Trainer(
        model=distribute(model),
        data_loader=loader,
        optimizer=optimizer,
        clip_grad_norm=config.train.clip_grad_norm,
        amp_dtype=resolve_amp(config.train.amp, resolve_device(config.train.device)),
        accumulate=config.train.accumulate,
        seed=config.train.seed,
    )


def start_or_resume(
    config: DictConfig, checkpointer: TrainingCheckpointer, average: ModelEmaV3 | None, resume: bool
) -> int:
    """Fill the model, from its last checkpoint or from where training is to start; returns the finished iterations."""
    comm.synchronize()  # all have looked at the folder before one writes into it
    start = 0
    if resume:
        start = checkpointer.resume()
    else:
        checkpointer.start_afresh()
    if (
        comm.is_main_process()
    ):  # a run may have ended after its last checkpoint, or before its first
        cut_metrics(Path(config.train.output_dir) / "metrics.json", start)
    if start == 0 and config.train.init_checkpoint:
        start_from(
            checkpointer.model,
            config.train.init_checkpoint,
            class_names=checkpointer.class_names,
            match_classes=config.train.get("match_classes", False),
        )
        if average is not None:
            average.set(checkpointer.model)
    return start


def check_test_set(config: DictConfig) -> None:
    """Find before the first step what an evaluation would stop at hours later.

    Raises:
        DatasetError: the annotations have a mistake, an image is missing, or the classes are not the model's.
    """
    check_files(instantiate(config.dataloader.test.dataset))
    check_class_count(config.dataloader.test.dataset.names, config.model.get("num_classes"))


def train(config: DictConfig, *, resume: bool) -> None:
    """Train as the config says; with ``resume`` go on from the last complete checkpoint in the output folder.

    Raises:
        DatasetError, CheckpointError, OSError: what is wrong with the data, the weights or the output folder, found
            before the first step where that is possible.
        FetchError: an image cannot be read; the finished steps are saved.
        FloatingPointError: the loss is not finite.
    """
    check_test_set(config)
    loader = instantiate(config.dataloader.train)
    names = config.dataloader.train.dataset.names
    check_class_count(names, config.model.get("num_classes"))
    model = build_model(config)
    optimizer = build_optimizer(config, model)
    average = build_average(config, model)
    compile_model(config, model)
    max_iter, images = config.train.max_iter, len(loader.dataset)
    scheduler = LRMultiplier(optimizer, instantiate(config.lr_multiplier), max_iter)
    trainer = build_trainer(config, model, loader, optimizer)
    checkpointer = build_checkpointer(config, model, optimizer, scheduler, trainer, average, images)
    check_room(config, model, average, checkpointer)
    start = start_or_resume(config, checkpointer, average, resume)
    if start >= max_iter:
        logger.info("all %d iterations are done already", max_iter)
    if comm.is_main_process():
        save_config(
            config
        )  # not before: that of a run in this folder stays if this one may not go on with it
    stops = StopSignals(
        defer=True,
        patience=PATIENCE,
        announcement=f"finishing this step and saving; again after {PATIENCE} s ends at once",
    )
    trainer.register_hooks(
        build_hooks(config, model, average, scheduler, checkpointer, start, stops)
    )
    batch = config.dataloader.train.total_batch_size
    logger.info(
        "%d images, %d iterations, %.1f epochs", images, max_iter, max_iter * batch / max(1, images)
    )
    with stops:
        run_steps(trainer, checkpointer, start, max_iter)


def build_checkpointer(
    config: DictConfig,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scheduler: LRMultiplier,
    trainer: Trainer,
    average: ModelEmaV3 | None,
    num_images: int,
) -> TrainingCheckpointer:
    """Keeps all that the run needs to go on exactly."""
    loader = config.dataloader.train
    order = DataOrder(
        seed=config.train.seed,
        total_batch_size=loader.total_batch_size,
        num_images=num_images,
        grouped=loader.get("aspect_ratio_grouping", False),
    )
    return TrainingCheckpointer(
        model,
        config.train.output_dir,
        max_to_keep=config.train.checkpointer.max_to_keep,
        class_names=class_names_of(loader.dataset.names),
        optimizer=optimizer,
        scheduler=scheduler,
        grad_scaler=trainer.grad_scaler,
        data_order=order,
        **({} if average is None else {"ema": average.module}),
        **({"loss_normalizer": LossNormalizer(model)} if isinstance(model, DenseDetector) else {}),
    )


def run_steps(
    trainer: Trainer, checkpointer: TrainingCheckpointer, start: int, max_iter: int
) -> None:
    """Train from an iteration to another one; data that cannot be read, or a full disk, costs no finished step.

    Raises:
        FetchError, OSError, FloatingPointError: see :func:`train`.
    """
    try:
        trainer.train(start, max_iter)
    except FetchError:
        if trainer.iter > start:
            checkpointer.save_periodic(trainer.iter)
        raise
    except OSError as error:
        if error.errno != errno.ENOSPC or error.filename:
            raise
        words = f"no space is left in {checkpointer.output_dir} ({error}); make room and go on with --resume"
        raise OSError(error.errno, words) from error


def build_writers(config: DictConfig, start: int) -> list[EventWriter]:
    """Where process 0 writes the scalars: console, metrics.json, TensorBoard and, if asked for, Weights & Biases."""
    if not comm.is_main_process():
        return []
    output_dir = config.train.output_dir
    writers = [
        ConsoleWriter(config.train.max_iter),
        JSONWriter(str(Path(output_dir) / "metrics.json")),
        TensorboardXWriter(
            str(output_dir), purge_step=start
        ),  # what was written after the last checkpoint
    ]
    if config.train.wandb.enabled:
        settings = {key: value for key, value in config.train.wandb.items() if key != "enabled"}
        writers.append(WandbWriter(output_dir, **settings))
    return writers


def build_hooks(
    config: DictConfig,
    model: nn.Module,
    average: ModelEmaV3 | None,
    scheduler: LRMultiplier,
    checkpointer: TrainingCheckpointer,
    start: int,
    stops: StopSignals,
) -> list[HookBase]:
    """The hooks of a run, in the order in which they act after a step."""
    best = BestCheckpointHook(
        checkpointer, f"{'' if average is None else 'ema/'}{config.train.best_metric}"
    )
    output_dir = config.train.output_dir
    shown = model if average is None else average.module
    previews = []
    if comm.is_main_process() and config.train.previews > 0:
        previews = [
            PreviewHook(lambda: preview_images(config, shown), config.train.eval_period, output_dir)
        ]
    writers = build_writers(config, start)
    return [
        hooks.IterationTimer(),
        hooks.LRScheduler(scheduler=scheduler),
        *([] if average is None else [EMAHook(average, model)]),
        CheckpointHook(checkpointer, config.train.checkpointer.period),
        EvaluationHook(
            config.train.eval_period,
            lambda: evaluate_with_ema(config, model, average and average.module),
            best,
            Path(output_dir) / "metrics.json",
            writers,
        ),
        *previews,
        hooks.PeriodicWriter(
            writers, period=min(config.train.log_period, max(1, math.ceil(config.train.max_iter)))
        ),
        InterruptHook(stops, checkpointer),
    ]
