"""The training step."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from detectron2.engine import TrainerBase
from detectron2.utils import comm
from torch import Tensor, nn
from torch.utils.data import DataLoader


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
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.model = model
        self.data_loader = data_loader
        self.optimizer = optimizer
        self.clip_grad_norm = clip_grad_norm
        self.amp_dtype = amp_dtype
        self.seed = seed
        self.device_type = next(model.parameters()).device.type
        # Only fp16 underflows without scaling of the loss.
        self.grad_scaler = torch.amp.GradScaler(self.device_type, enabled=amp_dtype == torch.float16)
        self._data: Iterator[list[dict[str, Any]]] | None = None
        model.train()

    def run_step(self) -> None:
        start = time.perf_counter()
        if self._data is None:
            self.data_loader.batch_sampler.start_iteration = self.start_iter  # type: ignore[union-attr]
            self._data = iter(self.data_loader)
        batch = next(self._data)
        data_time = time.perf_counter() - start
        seed_step(self.seed, self.iter, comm.get_rank())
        with self.autocast():
            losses = self.model(batch)
        total = torch.stack(list(losses.values())).sum()
        values = loss_values(losses)
        self.check_finite(values, batch)
        self.optimizer.zero_grad(set_to_none=True)
        self.grad_scaler.scale(total).backward()
        self.grad_scaler.unscale_(self.optimizer)
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        norm = nn.utils.clip_grad_norm_(parameters, self.clip_grad_norm or float("inf"))
        if not self.grad_scaler.is_enabled():  # with scaling such a step is left out, and the scale lowered
            self.check_finite(values | {"grad_norm": float(norm)}, batch)
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()
        self.record(values, norm, data_time, time.perf_counter() - start, len(batch))

    def autocast(self) -> AbstractContextManager[Any]:
        if self.amp_dtype is None:
            return nullcontext()
        return torch.autocast(self.device_type, dtype=self.amp_dtype)

    def check_finite(self, losses: dict[str, float], batch: list[dict[str, Any]]) -> None:
        """Stop on a loss or gradient norm that is not finite; the weights and checkpoints stay as they are.

        Raises:
            FloatingPointError: with the step, the loss terms and the pictures.
        """
        if all(np.isfinite(value) for value in losses.values()):
            return
        terms = ", ".join(f"{name}={value:.4g}" for name, value in losses.items())
        pictures = ", ".join(str(x.get("image_id", x.get("file_name"))) for x in batch)
        raise FloatingPointError(
            f"the loss or its gradient is not finite at iteration {self.iter}; images {pictures}; {terms}; "
            "the last checkpoint stays: look at these images, lower the learning rate, or train without fp16, "
            "and go on with --resume"
        )

    def record(self, losses: dict[str, float], norm: Tensor, data_time: float, step_time: float, images: int) -> None:
        """Hand the numbers of this step to the event storage, averaged over the processes."""
        numbers = losses | {"grad_norm": float(norm), "data_time": data_time}
        if comm.get_world_size() > 1:
            reduced = torch.tensor(list(numbers.values()), dtype=torch.float64, device=norm.device)
            torch.distributed.all_reduce(reduced)
            numbers = dict(zip(numbers, (reduced / comm.get_world_size()).tolist(), strict=True))
        if not comm.is_main_process():
            return
        numbers["total_loss"] = sum(numbers[name] for name in losses)
        numbers["samples_per_second"] = images * comm.get_world_size() / step_time
        # Written as they are, so that a resumed run can be compared with another; the console smooths for itself.
        self.storage.put_scalars(**numbers, smoothing_hint=False)


def seed_step(*key: int) -> None:
    """Seed torch's generators for one step; processes draw different numbers."""
    torch.manual_seed(int(np.random.SeedSequence(key).generate_state(1)[0]))


def loss_values(losses: dict[str, Tensor]) -> dict[str, float]:
    """The losses as numbers, with one transfer from the device."""
    values = torch.stack([loss.detach().double() for loss in losses.values()]).tolist()
    return dict(zip(losses, values, strict=True))
