"""Work on a simulated CUDA device, run by test_simulated_cuda.py in a process of its own.

checks.py [--config FILE] [--images N] [--size PIXELS] [--lines] CHECK...

Prints a line of JSON for each check: how far its results are from the CPU's, how often the host
waits in the last forward pass or training step, and how many operators it launches. It needs
``stub.c``, compiled and preloaded. By hand:

    cd tests/simulated_cuda
    gcc -w -shared -fPIC -Wl,-soname,libcuda.so.1 stub.c -o /tmp/libcuda.so.1
    LD_PRELOAD=/tmp/libcuda.so.1 PYTHONPATH=../.. python checks.py --lines evaluation training
"""

from __future__ import annotations

import argparse
import copy
import json
import warnings
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from detectron2.config import instantiate
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from device import RECORD, DeviceMixError, simulated_cuda
from torch import Tensor

from salience_detr.config import load_config
from salience_detr.engine.compilation import compile_model, set_memory_format
from salience_detr.engine.train import build_ema, build_optimizer
from salience_detr.engine.trainer import Trainer
from salience_detr.layers import ms_deform_attn
from salience_detr.layers.operator import load_operator
from salience_detr.predictor import Predictor, detect_with_salience

MICRO = Path(__file__).resolve().parents[1] / "configs" / "micro.py"

Batch = list[dict[str, Any]]
Result = dict[str, Any]


class Checks:
    """Checks of a config on a batch; each compares with the CPU, where it has computed the same.

    Args:
        config: a LazyConfig file.
        batch: images with ground truth.
    """

    def __init__(self, config: Path, batch: Batch) -> None:
        self.config = config
        self.batch = batch
        self.expected: dict[str, Tensor] = {}

    def evaluation(self, dtype: torch.dtype | None = None) -> Result:
        """Compare boxes and scores of all detections."""
        if "evaluation" not in self.expected:
            self.expected["evaluation"] = self.detect("cpu", None)

        found = self.detect("cuda", dtype)
        return result(found, self.expected["evaluation"])

    def detect(self, device: str, dtype: torch.dtype | None) -> Tensor:
        """Return the (n, 5) boxes and scores of all detections, on the CPU."""
        torch.manual_seed(0)
        model = instantiate(load_config(self.config).model).eval().to(torch.device(device))

        RECORD.start()
        with torch.no_grad(), torch.autocast(device, dtype=dtype, enabled=dtype is not None):
            outputs = model(self.batch)
        RECORD.stop()

        rows = []
        for output in outputs:
            instances = output["instances"].to("cpu")
            rows.append(torch.cat([instances.pred_boxes.tensor, instances.scores[:, None]], dim=1))
        return torch.cat(rows)

    def training(self, *overrides: str, **options: Any) -> Result:
        """Compare the losses of two steps."""
        if "training" not in self.expected:
            self.expected["training"] = self.train("cpu", ())

        found = self.train("cuda", overrides, **options)
        return result(found, self.expected["training"]) | {"operators": self.num_operators}

    def training_without_boxes(self) -> Result:
        """Train on images of which none has a box."""
        empty = copy.deepcopy(self.batch)
        for image in empty:
            image["instances"] = image["instances"][:0]

        checks = Checks(self.config, empty)
        return checks.training()

    def train(self, device: str, overrides: tuple[str, ...], **options: Any) -> Tensor:
        """Return the total losses of two steps; the second one is recorded, with its update."""
        config = load_config(self.config, [f"train.device={device}", *overrides])
        torch.manual_seed(0)
        model = instantiate(config.model)
        # Not behind the move: the memory of a simulated tensor cannot be exchanged in place.
        set_memory_format(config, model)
        model.to(torch.device(device))
        optimizer = build_optimizer(config, model)
        ema = build_ema(config, model)
        compile_model(config, model)

        trainer = OneBatchTrainer(
            model=model, data_loader=None, optimizer=optimizer, clip_grad_norm=0.1, **options
        )
        trainer.batch = self.batch
        losses = []
        with EventStorage(0) as trainer.storage:
            for trainer.iter in range(2):
                RECORD.start()
                trainer.run_step()
                RECORD.stop()
                if ema is not None:
                    ema.update(model, step=trainer.iter)
                losses.append(trainer.storage.latest()["total_loss"][0])

        self.num_operators = trainer.num_operators
        return torch.tensor(losses)

    def prediction(self, dtype: str = "float32") -> Result:
        """Compare the scores that Predictor gives for the images."""
        images = [x["image"].permute(1, 2, 0).numpy() for x in self.batch]
        if "prediction" not in self.expected:
            self.expected["prediction"] = self.predict("cpu", images, "float32")

        found = self.predict("cuda", images, dtype)
        return result(found, self.expected["prediction"])

    def predict(self, device: str, images: list[Any], dtype: str) -> Tensor:
        torch.manual_seed(0)
        predictor = Predictor(self.config, None, device=device, dtype=dtype)
        RECORD.start()
        with patch("salience_detr.predictor.detect_with_salience", detect_without_grad):
            detections = predictor.batch(images)
        RECORD.stop()
        return torch.cat([torch.as_tensor(x.scores) for x in detections])

    def planted_tensor(self) -> Result:
        """Give a stage a tensor of the CPU; return the error."""
        model = instantiate(load_config(self.config).model).eval().to(torch.device("cuda"))
        model.decoder.register_forward_pre_hook(move_memory_to_cpu)
        try:
            with torch.no_grad():
                model(self.batch)
        except DeviceMixError as error:
            return {"error": str(error)}
        return {"error": None}


@torch.no_grad()
def detect_without_grad(*args: Any, **options: Any) -> Any:
    """Run detect_with_salience, but not in inference mode, which refuses simulated tensors."""
    return detect_with_salience.__wrapped__(*args, **options)


class OneBatchTrainer(Trainer):
    """Trainer that takes the same batch in every step.

    Attributes:
        num_operators: launched by the last forward and backward pass. The update is left out:
            PyTorch takes real parameters together, but simulated ones one by one.
    """

    batch: Batch
    num_operators: int

    def fetch(self) -> Batch:
        return copy.deepcopy(self.batch)

    def compute_gradients(self, batch: Batch) -> Any:
        losses = super().compute_gradients(batch)
        self.num_operators = RECORD.num_operators
        return losses


def move_memory_to_cpu(decoder: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Replace the decoder's third argument, the memory, by a copy on the CPU."""
    query, boxes, memory, *others = inputs
    return query, boxes, memory.cpu(), *others


def result(found: Tensor, expected: Tensor) -> Result:
    """Return the largest difference and the record of the last work."""
    difference = None
    if found.shape == expected.shape:
        difference = float((found - expected).abs().max() / expected.abs().max())
    return {"difference": difference, "waits": RECORD.num_waits, "operators": RECORD.num_operators}


def make_batch(num_images: int, size: int) -> Batch:
    """Return images of two sizes with two boxes, or one box, in turn."""
    batch = []
    for i in range(num_images):
        if i % 2 == 0:
            batch.append(make_input(size, size * 5 // 4, num_boxes=2))
        else:
            batch.append(make_input(size * 3 // 4, size, num_boxes=1))
    return batch


def make_input(height: int, width: int, *, num_boxes: int) -> dict[str, Any]:
    """Return a model input of random pixels, boxes and classes."""
    low = torch.rand(num_boxes, 2) * 0.5
    high = low + torch.rand(num_boxes, 2) * 0.4 + 0.1
    scale = torch.tensor([width, height, width, height])

    instances = Instances((height, width))
    instances.gt_boxes = Boxes(torch.cat([low, high], dim=1) * scale)
    instances.gt_classes = torch.randint(0, 3, (num_boxes,))
    image = torch.randint(0, 256, (3, height, width), dtype=torch.uint8)
    return {"image": image, "instances": instances, "height": height, "width": width}


def named_checks(checks: Checks) -> dict[str, Callable[[], Result]]:
    training = checks.training
    return {
        "evaluation": checks.evaluation,
        "evaluation_bf16": partial(checks.evaluation, torch.bfloat16),
        "evaluation_fp16": partial(checks.evaluation, torch.float16),
        "prediction": checks.prediction,
        "prediction_fp16": partial(checks.prediction, "float16"),
        "training": training,
        "training_bf16": partial(training, amp_dtype=torch.bfloat16),
        "training_fp16": partial(training, amp_dtype=torch.float16),
        "training_accumulated": partial(training, accumulate=2),
        "training_channels_last": partial(training, "train.channels_last=True"),
        "training_ema": partial(training, "train.ema.enabled=True"),
        "training_without_boxes": checks.training_without_boxes,
        "planted_tensor": checks.planted_tensor,
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="+", metavar="CHECK")
    parser.add_argument("--config", type=Path, default=MICRO)
    parser.add_argument("--images", type=int, default=2)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--lines", action="store_true", help="say where the host waits")
    args = parser.parse_args()

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    # The simulation runs the CPU's kernels: no others are built for the device of the stub.
    with (
        patch("torch.cuda.device_count", lambda: 0),
        patch("torch.cuda.is_available", lambda: False),
    ):
        load_operator()
    ms_deform_attn.is_compiled_for = lambda _: True

    torch.manual_seed(1)
    checks = named_checks(Checks(args.config, make_batch(args.images, args.size)))
    with simulated_cuda():
        for name in args.names:
            print(json.dumps({"check": name, **checks[name]()}), flush=True)
            if args.lines:
                print_lines(RECORD.waits)
                print_lines(RECORD.launches, at_least=20)


def print_lines(counter: Counter[Any], *, at_least: int = 1) -> None:
    for key, count in counter.most_common():
        if count >= at_least:
            print(f"{count:6}  {key}")


if __name__ == "__main__":
    main()
