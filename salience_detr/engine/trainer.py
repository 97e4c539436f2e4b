"""The training step."""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from detectron2.engine import TrainerBase
from detectron2.utils import comm
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from salience_detr.data.images import ImageReadError
from salience_detr.data.loader import DataWorkerError, batches
from salience_detr.engine.launch import any_process

# After 20 steps in a row whose gradients are not finite; one that overflows once in a while halves it once.
SMALLEST_SCALE = 2.0**-4


class FetchError(RuntimeError):
    """The data of a step cannot be read.

    Attributes:
        reason: what went wrong in this process; None if it did in another one.
    """

    def __init__(self, reason: Exception | None) -> None:
        super().__init__(
            "the data of another process cannot be read" if reason is None else str(reason)
        )
        self.reason = reason


class Trainer(TrainerBase):
    """One step: load, forward, backward, clip, update. All else is in hooks.

    The random state of a step depends on the seed, the iteration and the process only, so that a resumed run
    continues exactly like an uninterrupted one.
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
        """Prepare.

        Args:
            model: gives a dict of losses in training. To accumulate it needs ``count`` (see ``SalienceDETR.count``).
            data_loader: of :func:`salience_detr.data.build_train_loader`.
            optimizer: of the model's parameters.
            clip_grad_norm: largest norm of all gradients together; 0 does not clip.
            amp_dtype: of autocast; None trains in the model's own precision.
            accumulate: number of parts in which each batch is computed, one after the other.
            seed: see above.

        Raises:
            ValueError: the model cannot be trained in parts.
        """
        if accumulate > 1 and not hasattr(getattr(model, "module", model), "count"):
            raise ValueError(
                f"train.accumulate is {accumulate}, but {type(model).__name__} cannot be trained in parts (it has no "
                "count method); use a smaller dataloader.train.total_batch_size"
            )
        super().__init__()
        self.model = model
        self.data_loader = data_loader
        self.optimizer = optimizer
        self.clip_grad_norm = clip_grad_norm
        self.amp_dtype = amp_dtype
        self.accumulate = accumulate
        self.seed = seed
        self.device_type = next(model.parameters()).device.type
        # Only fp16 underflows without scaling of the loss.
        self.grad_scaler = torch.amp.GradScaler(
            self.device_type, enabled=amp_dtype == torch.float16
        )
        self._data: Iterator[list[dict[str, Any]]] | None = None
        model.train()

    def run_step(self) -> None:
        start = time.perf_counter()
        batch = self.fetch()
        data_time = time.perf_counter() - start
        seed_step(self.seed, self.iter, comm.get_rank())
        self.optimizer.zero_grad(set_to_none=True)
        values = self.compute_gradients(batch)
        self.grad_scaler.unscale_(self.optimizer)
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        norm = nn.utils.clip_grad_norm_(parameters, self.clip_grad_norm or float("inf"))
        if (
            not self.grad_scaler.is_enabled()
        ):  # with scaling such a step is left out, and the scale lowered
            self.check_finite(values | {"grad_norm": float(norm)}, batch)
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()
        self.check_scale(batch)
        self.record(values, norm, data_time, time.perf_counter() - start, len(batch))

    def fetch(self) -> list[dict[str, Any]]:
        """The batch of this step.

        Raises:
            FetchError: it cannot be read, in this process or another one; the step has changed nothing yet.
        """
        if self._data is None:
            self._data = batches(self.data_loader, self.start_iter)
        failure, batch = None, []
        try:
            batch = next(self._data)
        except (ImageReadError, DataWorkerError) as error:
            failure = error
        if any_process(failure is not None):
            raise FetchError(failure) from failure
        return batch

    def compute_gradients(self, batch: list[dict[str, Any]]) -> dict[str, float]:
        """Forward and backward of a batch, at once or in parts; returns the losses of the batch by name."""
        if self.accumulate == 1:
            return self.backward(batch, batch)
        plain: Any = getattr(self.model, "module", self.model)
        whole = plain.count(batch)
        parts = split_evenly(batch, self.accumulate)
        values: Counter[str] = Counter()
        for part in parts:
            # Processes exchange the sum of all parts, with the last one.
            distributed = self.model if isinstance(self.model, DistributedDataParallel) else None
            with distributed.no_sync() if distributed and part is not parts[-1] else nullcontext():
                values.update(self.backward(part, batch, whole))
        return dict(values)

    def backward(
        self, part: list[dict[str, Any]], batch: list[dict[str, Any]], *whole: Any
    ) -> dict[str, float]:
        """Add the gradients of a part of a batch to the parameters; returns its losses by name."""
        with self.autocast():
            losses = self.model(part, *whole)
        total = torch.stack(list(losses.values())).sum()
        values = loss_values(losses)
        self.check_finite(values, batch)
        self.grad_scaler.scale(total).backward()
        return values

    def autocast(self) -> AbstractContextManager[Any]:
        if self.amp_dtype is None:
            return nullcontext()
        return torch.autocast(self.device_type, dtype=self.amp_dtype)

    def check_finite(self, losses: dict[str, float], batch: list[dict[str, Any]]) -> None:
        """Stop on a loss or gradient norm that is not finite; the weights and checkpoints stay as they are.

        Raises:
            FloatingPointError: with the step, the loss terms and the images.
        """
        if all(np.isfinite(value) for value in losses.values()):
            return
        terms = ", ".join(f"{name}={value:.4g}" for name, value in losses.items())
        images = ", ".join(str(x.get("image_id", x.get("file_name"))) for x in batch)
        raise FloatingPointError(
            f"the loss or its gradient is not finite at iteration {self.iter}; images {images}; {terms}; "
            "the last checkpoint stays: look at these images, lower the learning rate, or train without fp16, "
            "and go on with --resume"
        )

    def check_scale(self, batch: list[dict[str, Any]]) -> None:
        """Stop where fp16 leaves out step after step, because no scale makes the gradients finite.

        Raises:
            FloatingPointError: with the step and the images.
        """
        if self.grad_scaler.is_enabled() and self.grad_scaler.get_scale() < SMALLEST_SCALE:
            self.check_finite({"grad_norm": float("nan")}, batch)

    def record(
        self,
        losses: dict[str, float],
        norm: Tensor,
        data_time: float,
        step_time: float,
        images: int,
    ) -> None:
        """Hand the numbers of this step to the event storage, averaged over the processes."""
        numbers = losses | {"grad_norm": float(norm), "data_time": data_time}
        if comm.get_world_size() > 1:
            reduced = torch.tensor(list(numbers.values()), dtype=torch.float64, device=norm.device)
            torch.distributed.all_reduce(reduced)
            numbers = dict(zip(numbers, (reduced / comm.get_world_size()).tolist(), strict=True))
        if not comm.is_main_process():
            return
        numbers["total_loss"] = sum(numbers[name] for name in losses)
        numbers |= {f"loss_groups/{name}": value for name, value in group_losses(numbers).items()}
        numbers["samples_per_second"] = images * comm.get_world_size() / step_time
        # Written as they are, so that a resumed run can be compared with another; the console smooths for itself.
        self.storage.put_scalars(**numbers, smoothing_hint=False)


def split_evenly(batch: list[Any], count: int) -> list[list[Any]]:
    """``count`` lists, the longer ones first, or as many as there are entries."""
    short, longer = divmod(len(batch), count)
    ends = list(itertools.accumulate(short + (i < longer) for i in range(count)))
    return [batch[start:end] for start, end in zip([0, *ends], ends, strict=False) if end > start]


def seed_step(*key: int) -> None:
    """Seed torch's generators for one step; processes draw different numbers."""
    torch.manual_seed(int(np.random.SeedSequence(key).generate_state(1)[0]))


def loss_values(losses: dict[str, Tensor]) -> dict[str, float]:
    """The losses as numbers, with one transfer from the device."""
    values = torch.stack([loss.detach().double() for loss in losses.values()]).tolist()
    return dict(zip(losses, values, strict=True))


def group_losses(losses: dict[str, float]) -> dict[str, float]:
    """Losses summed by what they teach: the last decoder layer apart, the earlier ones, the encoder's proposals, ...

    A detector with other losses than Salience DETR's gets one group for each of them.
    """
    groups: dict[str, float] = {}
    for name, value in losses.items():
        if not name.startswith("loss_"):
            continue
        kind = name.removeprefix("loss_")
        if kind.endswith("_enc"):
            kind = "encoder"
        elif "_dn" in kind:
            kind = "denoising"
        elif kind.rpartition("_")[2].isdigit():
            kind = "earlier"
        groups[kind] = groups.get(kind, 0.0) + value
    return groups
