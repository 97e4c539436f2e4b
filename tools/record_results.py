#!/usr/bin/env python
"""Record what the project computes, to show that a change keeps its results.

record_results.py --output before.json               (on the code before the change)
record_results.py --output after.json                (after it, on the same machine)
record_results.py --compare before.json after.json

It runs the programs as a user does, in processes of one thread, and records the losses of the first
steps of two trainings, their weights, the same trainings stopped and resumed, the AP of the shipped
weights, the detections of the demo, and the outputs of an exported model. Equal files mean equal
results to the last bit. The rows of NEU-DET need its folder (--neu-det, or the variable NEU_DET).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from PIL import Image

from salience_detr.cli.arguments import Parser

ROOT = Path(__file__).resolve().parents[1]
STEPS = 30
NUM_IMAGES = 5  # that the exported model runs on
Results: TypeAlias = dict[str, object]


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(description=__doc__)
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--output", type=Path, metavar="FILE", help="JSON file to write")
    action.add_argument("--compare", type=Path, nargs=2, metavar="FILE", help="two recordings")

    add = parser.add_argument
    add("--project", type=Path, default=ROOT, metavar="DIR", help="checkout (default: this one)")
    neu_det = os.environ.get("NEU_DET")
    add("--neu-det", type=Path, default=neu_det, metavar="DIR", help="(default: $NEU_DET)")
    return parser.parse_args(argv)


class Recorder:
    """A checkout's programs, run one after the other in a scratch folder.

    Args:
        project: root of the checkout.
        scratch: folder for data and outputs.
        neu_det: folder of NEU-DET, if it is at hand.
    """

    def __init__(self, project: Path, scratch: Path, neu_det: Path | None) -> None:
        self.project = project.resolve()
        self.scratch = scratch
        self.neu_det = neu_det

        # With several threads, the order of a sum, and so its last bits, may vary.
        self.environment = os.environ | {
            "DETECTRON2_DATASETS": str(scratch / "datasets"),
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(self.project),
        }
        if neu_det is not None:
            self.environment["NEU_DET"] = str(neu_det.resolve())

    def run(self, program: str, *arguments: str | Path) -> None:
        """Run a program of the checkout.

        Raises:
            RuntimeError: it failed; the message has the end of its output.
        """
        print("running", program, *arguments, flush=True)

        # The output is only of interest where the program fails.
        finished = subprocess.run(
            [sys.executable, program, *arguments],
            cwd=self.project,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        if finished.returncode:
            end = finished.stdout[-3000:]
            raise RuntimeError(f"{program} ended with {finished.returncode}\n{end}")

    def record(self) -> Results:
        """Run everything and return the results by name."""
        self.run("tools/make_surface_defects.py", "--num-train", "240")
        results = self.record_training("surface_defects_tiny")
        results |= self.record_evaluation("surface_defects_tiny")
        results |= self.record_demo("surface_defects_tiny")
        results |= self.record_export("surface_defects_tiny")
        results |= self.record_evaluation("surface_defects_tiny_plus")

        if self.neu_det is None:
            print("NEU-DET is left out: name its folder with --neu-det")
            return results
        results |= self.record_training("neu_det_r18")
        results |= self.record_evaluation("neu_det_r18")
        return results | self.record_evaluation("neu_det_r18_plus")

    def record_training(self, name: str) -> Results:
        """Train for some steps in one run, and again in two, of which the second resumes."""
        whole = self.scratch / name / "whole"
        self.train(name, whole, max_iter=STEPS)

        parts = self.scratch / name / "parts"
        self.train(name, parts, max_iter=STEPS // 2)
        self.train(name, parts, "--resume", max_iter=STEPS)
        return {
            f"{name}: losses": read_losses(whole),
            f"{name}: weights": digest_of_weights(whole / "model_final.pth"),
            f"{name}: losses, resumed": read_losses(parts),
            f"{name}: weights, resumed": digest_of_weights(parts / "model_final.pth"),
        }

    def train(self, name: str, output_dir: Path, *flags: str, max_iter: int) -> None:
        # Every step is logged; an evaluation and previews would only take time.
        overrides = [
            f"train.output_dir={output_dir}",
            f"train.max_iter={max_iter}",
            f"train.checkpointer.period={STEPS // 2}",
            "train.log_period=1",
            "train.eval_period=1000",
            "train.previews=0",
        ]

        self.run("train_net.py", "--config-file", f"configs/{name}.py", *flags, *overrides)

    def record_evaluation(self, name: str) -> Results:
        """Evaluate shipped weights, and take the AP as it is printed."""
        output_dir = self.scratch / name / "evaluation"
        output = f"train.output_dir={output_dir}"
        self.run("train_net.py", *shipped_model(name), "--eval-only", output)

        # detectron2 marks these lines for copying into a spreadsheet.
        log = (output_dir / "log.txt").read_text()
        return {f"{name}: AP of the shipped weights": re.findall("copypaste: (.*)", log)}

    def record_demo(self, name: str) -> Results:
        """Detect on validation images and on a video."""
        inputs = self.scratch / "inputs"
        self.run("tools/make_demo_inputs.py", "--output", inputs, "--seconds", "1")
        for image in self.validation_images():
            shutil.copy(image, inputs)

        path = self.scratch / "predictions.json"
        model = shipped_model(name)
        output = self.scratch / "detections"
        self.run("demo/demo.py", *model, "--input", inputs, "--output", output, "--json", path)

        # The scratch folder has another name each time.
        content = json.loads(path.read_text().replace(str(inputs), "inputs"))
        return {"demo: detections": content}

    def record_export(self, name: str) -> Results:
        """Export to ONNX, and run ONNX Runtime on validation images."""
        import onnxruntime  # of the extra "onnx"

        path = self.scratch / "model.onnx"
        self.run("tools/export.py", *shipped_model(name), "--output", path)

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        results: Results = {}
        for image in self.validation_images():
            outputs = session.run(None, onnx_inputs(image))
            results[f"ONNX: {image.name}"] = [digest_of_array(output) for output in outputs]
        return results

    def validation_images(self) -> list[Path]:
        folder = self.scratch / "datasets" / "surface_defects" / "val"
        return sorted(folder.glob("*.jpg"))[:NUM_IMAGES]


def shipped_model(name: str) -> list[str]:
    """Return the arguments that name a config and the weights in demo/."""
    return ["--config-file", f"configs/{name}.py", "--weights", f"demo/{name}.safetensors"]


def onnx_inputs(path: Path) -> dict[str, np.ndarray]:
    """Return the inputs of an exported model: a batch of one image, and its size."""
    image = np.asarray(Image.open(path).convert("RGB"), dtype=np.float32)
    height, width = image.shape[:2]

    images = np.ascontiguousarray(image.transpose(2, 0, 1)[None])  # (1, 3, H, W)
    return {"images": images, "image_sizes": np.array([[height, width]])}


def read_losses(output_dir: Path) -> dict[str, list[float]]:
    """Return the losses of every step of a run, by name."""
    losses: dict[str, list[float]] = {}
    for line in (output_dir / "metrics.json").read_text().splitlines():
        for name, value in json.loads(line).items():
            if name.startswith(("total_loss", "loss_", "grad_norm")):
                losses.setdefault(name, []).append(value)
    return losses


def digest_of_weights(path: Path) -> str:
    """Return the SHA-256 of all tensors of a checkpoint's model, with their names."""
    state_dict = torch.load(path, map_location="cpu", weights_only=True)["model"]
    digest = hashlib.sha256()
    for name, tensor in sorted(state_dict.items()):
        digest.update(name.encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def digest_of_array(array: np.ndarray) -> str:
    """Return shape, sum and SHA-256 of an array."""
    content = hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()
    return f"{array.shape} sum {array.sum():.9g} sha256 {content}"


def compare(before: Results, after: Results) -> bool:
    """Print a line for each result, and return True if all are equal."""
    for name in before | after:
        if name not in before or name not in after:
            verdict = "only in one of the two"
        elif before[name] == after[name]:
            verdict = "equal"
        else:
            verdict = "DIFFERENT"
        print(f"{verdict:24} {name}")
    return before == after


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    if args.compare:
        before, after = (json.loads(path.read_text()) for path in args.compare)
        return 0 if compare(before, after) else 1

    with tempfile.TemporaryDirectory() as scratch:
        try:
            results = Recorder(args.project, Path(scratch), args.neu_det).record()
        except RuntimeError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
    args.output.write_text(json.dumps(results, indent=1) + "\n")
    print(f"{len(results)} results in {args.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
