"""Detection on single pictures and batches, in a few lines of Python."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from detectron2.config import instantiate
from detectron2.data import MetadataCatalog
from detectron2.structures import Instances
from omegaconf import DictConfig
from PIL import Image
from torch import Tensor, nn

from salience_detr.checkpoint import load_weights
from salience_detr.data.datasets import ensure_class_names, register_coco_dataset
from salience_detr.data.mapper import DetectionMapper, pil_to_rgb, read_image
from salience_detr.engine.config import load_config
from salience_detr.engine.device import resolve_device
from salience_detr.modeling import SalienceDETR

ImageLike = np.ndarray | Image.Image | str | Path


@dataclass(frozen=True)
class Detection:
    """What was found on one picture.

    Attributes:
        instances: ``pred_boxes`` (absolute xyxy in the frame of the picture, not clipped), ``scores`` and
            ``pred_classes``, by falling score, on the CPU.
        salience: (H, W) float32 in [0, 1], how salient the model finds each pixel.
    """

    instances: Instances
    salience: np.ndarray


class Predictor:
    """Runs a model of a LazyConfig file on pictures, exactly as evaluation does.

    Args:
        config: a LazyConfig file, or what it holds.
        weights: a checkpoint that :func:`salience_detr.checkpoint.load_weights` reads; None keeps random weights.
        device: "cpu", "cuda", ... or "auto": a GPU if there is one.
        score_threshold: detections below it are left out.
        overrides: ``key=value`` changes of the config.

    Raises:
        ConfigError, CheckpointError: the config or the weights cannot be used.
    """

    def __init__(
        self,
        config: str | Path | DictConfig,
        weights: str | Path | None,
        *,
        device: str = "auto",
        score_threshold: float = 0.0,
        overrides: Sequence[str] = (),
    ) -> None:
        self.config = config if isinstance(config, DictConfig) else load_config(config, overrides)
        self.score_threshold = score_threshold
        self.model: SalienceDETR = instantiate(self.config.model).to(resolve_device(device)).eval()
        if weights is not None:
            load_weights(self.model, weights)
        self.mapper: DetectionMapper = instantiate(self.config.dataloader.test.mapper)
        dataset = self.config.dataloader.test.dataset
        name = dataset.names if isinstance(dataset.names, str) else dataset.names[0]
        if dataset.get("json_file"):
            register_coco_dataset(name, dataset.json_file, dataset.image_root)
        ensure_class_names(name)
        self.metadata = MetadataCatalog.get(name)

    @property
    def class_names(self) -> list[str]:
        """Name of each class; its number where the data set of the config has no names."""
        known = list(self.metadata.get("thing_classes", []))
        return known + [str(i) for i in range(len(known), self.config.model.num_classes)]

    def __call__(self, image: ImageLike) -> Instances:
        """Detections on one picture: a path, a PIL image, or an RGB array (see :func:`to_rgb`)."""
        return self.batch([image])[0]

    def batch(self, images: Sequence[ImageLike]) -> list[Instances]:
        """Detections on several pictures, computed together.

        Returns:
            Instances of each picture: ``pred_boxes`` (absolute xyxy), ``scores``, ``pred_classes``, on the CPU.
        """
        return [detection.instances for detection in self.detect(images)]

    def detect(self, images: Sequence[ImageLike]) -> list[Detection]:
        """Detections and salience maps of several pictures, from one pass of the model."""
        return detect(self.model, self.mapper, images, score_threshold=self.score_threshold)


@torch.inference_mode()
def detect(
    model: SalienceDETR, mapper: DetectionMapper, images: Sequence[ImageLike], *, score_threshold: float = 0.0
) -> list[Detection]:
    """Detections and salience maps of several pictures, from one pass of a model in evaluation mode."""
    if not images:
        return []
    rgb = [to_rgb(image) for image in images]
    inputs = [mapper.prepare_image(x[..., ::-1] if mapper.image_format == "BGR" else x) for x in rgb]
    with captured_output(model.get_submodule("salience_filter")) as selections:
        outputs = model(inputs)
    heat = salience_maps(selections[0].score_maps, inputs, model.size_divisibility)
    detections = []
    for output, salience in zip(outputs, heat, strict=True):
        instances = output["instances"].to("cpu")
        detections.append(Detection(instances[instances.scores >= score_threshold], salience))
    return detections


def to_rgb(image: ImageLike) -> np.ndarray:
    """(H, W, 3) uint8 RGB of a picture.

    Args:
        image: a path; a PIL image of any mode; or an array: (H, W, 3) RGB, (H, W, 4) RGBA (the alpha is dropped) or
            (H, W) grey, of uint8, or of uint16 (scaled down).

    Raises:
        ImageReadError: the file cannot be read.
        ValueError: an array of another shape or type.
    """
    if isinstance(image, (str, Path)):
        return read_image(str(image))
    if isinstance(image, Image.Image):
        return pil_to_rgb(image)
    if image.dtype == np.uint16:
        image = (image >> 8).astype(np.uint8)
    is_color = image.ndim == 3 and image.shape[2] in (1, 3, 4)
    if image.dtype != np.uint8 or not (image.ndim == 2 or is_color) or 0 in image.shape:
        raise ValueError(
            f"an image is an array of shape (H, W), (H, W, 3) or (H, W, 4) of uint8 or uint16, "
            f"not of shape {image.shape} and {image.dtype}"
        )
    if image.ndim == 2 or image.shape[2] == 1:
        return np.repeat(image.reshape(*image.shape[:2], 1), 3, axis=2)
    return image[..., :3]


@contextmanager
def captured_output(module: nn.Module) -> Iterator[list[Any]]:
    """Collects what the module returns inside the block."""
    outputs: list[Any] = []
    handle = module.register_forward_hook(lambda _module, _inputs, output: outputs.append(output))
    try:
        yield outputs
    finally:
        handle.remove()


def salience_maps(
    score_maps: Sequence[Tensor], inputs: Sequence[dict[str, Any]], size_divisibility: int
) -> list[np.ndarray]:
    """One heat map per picture: at each pixel the highest salience over the levels.

    Args:
        score_maps: L maps (B, H_l, W_l) of logits over the padded batch, finest first.
        inputs: what the model was given: ``image`` (3, h, w), and ``height`` and ``width`` of the picture.
        size_divisibility: the padded batch has the largest sides, rounded up to multiples of this.

    Returns:
        (height, width) float32 in [0, 1] of each picture.
    """
    longest = max(x["image"].shape[1] for x in inputs)
    stride = math.ceil(longest / size_divisibility) * size_divisibility / score_maps[0].shape[1]
    finest = score_maps[0].shape[-2:]
    levels = [
        F.interpolate(x[:, None].float().sigmoid(), size=finest, mode="bilinear", align_corners=False)
        for x in score_maps
    ]
    merged = torch.stack(levels).amax(0)  # (B, 1, H_0, W_0)
    heat = []
    for one, x in zip(merged, inputs, strict=True):
        rows, columns = (max(1, round(size / stride)) for size in x["image"].shape[1:])
        unpadded = one[None, :, :rows, :columns]
        resized = F.interpolate(unpadded, size=(x["height"], x["width"]), mode="bilinear", align_corners=False)
        heat.append(resized[0, 0].cpu().numpy())
    return heat
