"""The training step."""

from __future__ import annotations

import itertools
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeAlias

import numpy as np
import torch
from detectron2.engine import SimpleTrainer
from detectron2.utils import comm
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from salience_detr.data.images import ImageReadError
from salience_detr.data.loader import DataWorkerError, batches
from salience_detr.engine.launch import any_process
from salience_detr.modeling.structures import LossNormalizers, ModelInput

Batch: TypeAlias = list[ModelInput]

# fp16 halves its scale after each step whose gradients overflow: this is reached after 20 in a row.
SMALLEST_SCALE = 2.0**-4

# How PyTorch's message about a batch that is too small for BatchNorm begins.
NO_VARIANCE = "Expected more than 1 value per channel"


class StopError(RuntimeError):
    """End of a run in all of its processes together, for a reason that one of them has.

    Attributes:
        reason: what went wrong in this process; None if it went wrong in another one.
    """

    def __init__(self, reason: Exception | None) -> None:
        super().__init__(str(reason or "another process of the run cannot go on"))
        self.reason = reason


class FetchError(StopError):
    """Data of a step that cannot be read."""


class Trainer(SimpleTrainer):
    """Training loop whose step loads, computes gradients, clips them and updates the weights.

    The step is not detectron2's: it accumulates, clips, stops before an update that is not finite,
    and ends all processes together where one cannot read its data. The random state of a step
    depends on the seed, the iteration and the process only, so that a resumed run continues
    exactly.
    """

    def __init__(
        self,
        *,
        model: nn.Module,
        data_loader: DataLoader[Any],
        optimizer: torch.optim.Optimizer,
        clip_grad_norm: float,
        amp_dtype: torch.dtype | None = None,
        accumulate: int = 1,
        seed: int = 0,
    ) -> None:
        """Prepare the training of a model.

        Args:
            model: returns a dict of losses in training. To accumulate, it needs a method
                ``compute_loss_normalizers`` (see ``SalienceDETR``).
            data_loader: see :func:`salience_detr.data.build_train_loader`.
            optimizer: holds the model's parameters.
            clip_grad_norm: largest norm of all gradients together; 0 does not clip.
            amp_dtype: dtype of autocast; None trains in the model's own precision.
            accumulate: number of parts in which each batch is computed, one after the other.
            seed: fixes the random numbers of all steps.

        Raises:
            ValueError: the model cannot be trained in parts.
        """
        plain_model = getattr(model, "module", model)
        if accumulate > 1 and not hasattr(plain_model, "compute_loss_normalizers"):
            raise ValueError(
                f"train.accumulate is {accumulate}, but {type(plain_model).__name__} cannot be "
                "trained in parts (no compute_loss_normalizers); set it to 1"
            )

        super().__init__(model, data_loader, optimizer)
        self._data_loader_iter_obj: Iterator[Batch] | None = None
        self.clip_grad_norm = clip_grad_norm
        self.amp_dtype = amp_dtype
        self.accumulate = accumulate
        self.seed = seed
        self.device_type = next(model.parameters()).device.type

        # Only fp16 underflows without scaling of the loss.
        uses_scaling = amp_dtype == torch.float16
        self.grad_scaler = torch.amp.GradScaler(self.device_type, enabled=uses_scaling)

    @property
    def _data_loader_iter(self) -> Iterator[Batch]:
        if self._data_loader_iter_obj is None:
            self._data_loader_iter_obj = batches(self.data_loader, self.start_iter)
        return self._data_loader_iter_obj

    def run_step(self) -> None:
        start = time.perf_counter()
        batch = self.fetch()
        data_time = time.perf_counter() - start

        # A resumed run draws the same random numbers in this step.
        seed_step(self.seed, self.iter, comm.get_rank())
        self.optimizer.zero_grad(set_to_none=True)
        losses = self.compute_gradients(batch)
        grad_norm = self.clip_gradients()

        # The step waits for the device once, when all of its gradients are on their way.
        numbers = read_numbers(losses | {"grad_norm": grad_norm})

        # With scaling, a step without finite gradients is left out and the scale lowered.
        checked = dict(numbers)
        if self.grad_scaler.is_enabled():
            del checked["grad_norm"]
        self.check_finite(checked, batch)

        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()

        # Step after step has been left out: no scale makes the gradients finite.
        if self.grad_scaler.get_scale() < SMALLEST_SCALE:
            self.check_finite({"grad_norm": float("nan")}, batch)

        # All numbers are means over the processes, but for the speed, which is that of all.
        images_per_second = len(batch) * comm.get_world_size() / (time.perf_counter() - start)
        numbers["data_time"] = data_time
        numbers = average_over_processes(numbers, grad_norm.device)
        if comm.is_main_process():
            numbers["total_loss"] = sum(numbers[name] for name in losses)
            for group, value in group_losses(numbers).items():
                numbers[f"loss_groups/{group}"] = value
            numbers["samples_per_second"] = images_per_second
            # Written unsmoothed, so that runs can be compared; the console smooths for itself.
            self.storage.put_scalars(**numbers, smoothing_hint=False)

    def fetch(self) -> Batch:
        """Return the batch of this step.

        Raises:
            FetchError: some process cannot read its data; the step has changed nothing yet.
        """
        failure = None
        batch: Batch = []
        try:
            batch = next(self._data_loader_iter)
        except (ImageReadError, DataWorkerError) as error:
            failure = error

        # Otherwise the others would wait for this one's gradients.
        if any_process(failure is not None):
            raise FetchError(failure) from failure
        return batch

    def compute_gradients(self, batch: Batch) -> dict[str, Tensor]:
        """Run forward and backward on a batch, at once or in parts; return its losses by name."""
        if self.accumulate == 1:
            return self.backward(batch)

        # Each part is divided by the numbers of the whole batch, so that the parts add up to it.
        plain_model: Any = getattr(self.model, "module", self.model)
        normalizers = plain_model.compute_loss_normalizers(batch)
        parts = split_evenly(batch, self.accumulate)
        losses: dict[str, Tensor] = {}
        for part in parts:
            # The processes exchange the sum over all parts, with the last one.
            context: AbstractContextManager[None] = nullcontext()
            if isinstance(self.model, DistributedDataParallel) and part is not parts[-1]:
                context = self.model.no_sync()
            with context:
                part_losses = self.backward(part, normalizers)
            for name, loss in part_losses.items():
                losses[name] = losses[name] + loss if name in losses else loss
        return losses

    def backward(self, part: Batch, *normalizers: LossNormalizers) -> dict[str, Tensor]:
        """Add the gradients of a part of a batch to the parameters'; return its losses by name."""
        uses_amp = self.amp_dtype is not None
        with torch.autocast(self.device_type, dtype=self.amp_dtype, enabled=uses_amp):
            losses = self.compute_losses(part, *normalizers)
        total = torch.stack(list(losses.values())).sum()

        self.grad_scaler.scale(total).backward()
        return {name: loss.detach().double() for name, loss in losses.items()}

    def compute_losses(self, part: Batch, *normalizers: LossNormalizers) -> dict[str, Tensor]:
        """Run the model on a part of a batch.

        Raises:
            ValueError: the part is too small for BatchNorm; the message names its images.
        """
        try:
            losses: dict[str, Tensor] = self.model(part, *normalizers)
        except ValueError as error:
            if NO_VARIANCE not in str(error):
                raise
            images = ", ".join(str(x.get("file_name", x.get("image_id"))) for x in part)
            raise ValueError(
                f"BatchNorm cannot be trained on one value per channel, which is all that a map of "
                f"{images} has; give each process at least two images at a time (raise "
                "dataloader.train.total_batch_size, lower train.accumulate), enlarge the image, or "
                "freeze BatchNorm"
            ) from error
        return losses

    def clip_gradients(self) -> Tensor:
        """Scale the gradients down to the largest norm allowed; return the norm they had."""
        # The norm is that of the gradients without the scale of the loss.
        self.grad_scaler.unscale_(self.optimizer)
        groups = self.optimizer.param_groups
        parameters = itertools.chain.from_iterable(group["params"] for group in groups)
        return nn.utils.clip_grad_norm_(list(parameters), self.clip_grad_norm or float("inf"))

    def check_finite(self, losses: dict[str, float], batch: Batch) -> None:
        """Stop before the update if a loss or the gradient norm is not finite.

        Raises:
            FloatingPointError: with the iteration, the loss terms and the images.
        """
        if np.isfinite(list(losses.values())).all():
            return

        terms = ", ".join(f"{name}={value:.4g}" for name, value in losses.items())
        images = ", ".join(str(record.get("image_id")) for record in batch)
        raise FloatingPointError(
            f"the loss or its gradient is not finite at iteration {self.iter}; images {images}; "
            f"{terms}; look at these images, lower the learning rate, or train without fp16, and "
            "go on from the last checkpoint with --resume"
        )


def split_evenly(batch: list[Any], count: int) -> list[list[Any]]:
    """Split a batch into ``count`` lists (fewer if it has fewer entries), the longer ones first."""
    count = min(count, len(batch))
    size, longer = divmod(len(batch), count)
    entries = iter(batch)
    return [list(itertools.islice(entries, size + (i < longer))) for i in range(count)]


def seed_step(*key: int) -> None:
    """Seed torch's generators for one step; processes draw different numbers."""
    torch.manual_seed(int(np.random.SeedSequence(key).generate_state(1)[0]))


def read_numbers(tensors: dict[str, Tensor]) -> dict[str, float]:
    """Return named tensors of one element as numbers, by one copy from their device."""
    values = torch.stack([x.double() for x in tensors.values()]).tolist()
    return dict(zip(tensors, values, strict=True))


def average_over_processes(numbers: dict[str, float], device: torch.device) -> dict[str, float]:
    """Return the means of named numbers over all processes, which all call this."""
    if comm.get_world_size() == 1:
        return numbers

    # One exchange for all of them.
    total = torch.tensor(list(numbers.values()), dtype=torch.float64, device=device)
    torch.distributed.all_reduce(total)
    return dict(zip(numbers, (total / comm.get_world_size()).tolist(), strict=True))


def group_losses(losses: dict[str, float]) -> dict[str, float]:
    """Sum the losses of what is trained together.

    Groups are the last decoder layer's terms, one each, the "earlier" layers, the "encoder"'s
    proposals, "denoising", "one_to_many", and "hybrid". Other losses of a detector are groups of
    their own.
    """
    groups: defaultdict[str, float] = defaultdict(float)
    for name, value in losses.items():
        if not name.startswith("loss_"):
            continue

        group = name.removeprefix("loss_")
        if group.endswith("_hybrid"):
            group = "hybrid"
        elif group.endswith("_enc"):
            group = "encoder"
        elif "_dn" in group:
            group = "denoising"
        elif "_o2m" in group:
            group = "one_to_many"
        elif group.rpartition("_")[2].isdigit():
            group = "earlier"
        groups[group] += value
    return dict(groups)
