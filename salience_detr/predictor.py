"""Detection on single images and batches, in a few lines of Python."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
import torch.nn.functional as F
from detectron2.config import instantiate
from detectron2.data import MetadataCatalog
from detectron2.structures import Instances
from omegaconf import DictConfig
from torch import Tensor

from salience_detr.checkpoint import load_weights
from salience_detr.config import ConfigError, load_config, resolve_device
from salience_detr.data.datasets import ensure_class_names, register_coco_dataset
from salience_detr.data.images import ImageLike, as_batch, to_rgb
from salience_detr.data.mapper import DetectionMapper
from salience_detr.detections import ClassTable, Detection, Detections
from salience_detr.modeling import SalienceDETR
from salience_detr.modeling.salience_detr import padding_mask

DTYPES = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Detector(ABC):
    """What all that detects offers, whatever computes it; several threads may call one detector at a time.

    Images are computed together only where that changes nothing: what lies beside a smaller image in a batch has an
    influence on it.

    Args:
        classes: that it tells apart.
        mapper: makes inputs of images.
        size_divisibility: sides of a batch are rounded up to multiples of this.
        score_threshold: detections below it are left out.
        batch_size: images that are computed together, at most.
    """

    def __init__(
        self,
        classes: ClassTable,
        mapper: DetectionMapper,
        *,
        size_divisibility: int = 32,
        score_threshold: float = 0.0,
        batch_size: int = 8,
    ) -> None:
        if not 0 <= score_threshold <= 1:
            raise ValueError(f"score_threshold is {score_threshold}; scores lie between 0 and 1")
        if batch_size < 1:
            raise ValueError(
                f"batch_size is {batch_size}; at least one image is computed at a time"
            )
        self.classes = classes
        self.mapper = mapper
        self.size_divisibility = size_divisibility
        self.score_threshold = score_threshold
        self.batch_size = batch_size

    @property
    def class_names(self) -> list[str]:
        """Name of each class; its number where neither the data set nor the weights have names."""
        return list(self.classes.names)

    @overload
    def __call__(self, image: ImageLike, *, channel_order: str = "RGB") -> Detections: ...

    @overload
    def __call__(
        self, image: Sequence[ImageLike], *, channel_order: str = "RGB"
    ) -> list[Detections]: ...

    def __call__(
        self, image: ImageLike | Sequence[ImageLike], *, channel_order: str = "RGB"
    ) -> Detections | list[Detections]:
        """Detections on one image, or on each of several.

        Args:
            image: a path, a PIL image, an array or a tensor (see :func:`salience_detr.images.to_rgb`); or a list of
                them, a (B, 3, H, W) tensor or a (B, H, W, 3) array.
            channel_order: of arrays and tensors; say "BGR" for what OpenCV has read.

        Raises:
            ImageReadError: a file cannot be read.
            ValueError, TypeError: no image.
        """
        images = as_batch(image)
        if images is None:
            return self.batch([image], channel_order=channel_order)[0]  # type: ignore[list-item]
        return self.batch(images, channel_order=channel_order)

    def batch(self, images: Sequence[ImageLike], *, channel_order: str = "RGB") -> list[Detections]:
        """Detections on several images, :attr:`batch_size` of them computed together."""
        return [found.instances for found in self.detect(images, channel_order=channel_order)]

    def detect(self, images: Sequence[ImageLike], *, channel_order: str = "RGB") -> list[Detection]:
        """Detections and salience maps of several images."""
        return list(self.stream(images, channel_order=channel_order))

    def stream(
        self, images: Sequence[ImageLike], *, channel_order: str = "RGB"
    ) -> Iterator[Detection]:
        """The same one by one: no more than a batch is held in memory."""
        for start in range(0, len(images), self.batch_size):
            chunk = list(images[start : start + self.batch_size])
            inputs = [prepare_input(self.mapper, to_rgb(image, channel_order)) for image in chunk]
            for image, (instances, salience) in zip(chunk, self.infer_alike(inputs), strict=True):
                found = instances[instances.scores >= self.score_threshold]
                yield Detection(
                    Detections(found, self.classes, partial(to_rgb, image, channel_order)), salience
                )

    def infer_alike(self, inputs: list[dict[str, Any]]) -> list[tuple[Instances, np.ndarray]]:
        """The same as :meth:`infer` of each input alone: those that are padded to the same size go together."""
        groups: dict[tuple[int, ...], list[int]] = {}
        for i, x in enumerate(inputs):
            padded = tuple(
                math.ceil(side / self.size_divisibility) for side in x["image"].shape[1:]
            )
            groups.setdefault(padded, []).append(i)
        results: dict[int, tuple[Instances, np.ndarray]] = {}
        for group in groups.values():
            results |= dict(zip(group, self.infer([inputs[i] for i in group]), strict=True))
        return [results[i] for i in range(len(inputs))]

    @abstractmethod
    def infer(self, inputs: list[dict[str, Any]]) -> list[tuple[Instances, np.ndarray]]:
        """Instances on the CPU and the salience map of each input, which has ``image``, ``height`` and ``width``."""


class Predictor(Detector):
    """Runs a model of a LazyConfig file on images, exactly as evaluation does.

    Args:
        config: a LazyConfig file, or what it holds.
        weights: a checkpoint that :func:`salience_detr.checkpoint.load_weights` reads, tensors only; None keeps random
            weights.
        device: "cpu", "cuda", ... or "auto": a GPU if there is one.
        dtype: "float32", "bfloat16" or "float16", or PyTorch's: what the model computes in, by autocast; weights,
            coordinates and results stay in float32.
        score_threshold: detections below it are left out.
        batch_size: images that are computed together, at most.
        overrides: ``key=value`` changes of the config.

    Raises:
        ConfigError, CheckpointError: the config or the weights cannot be used.
        ValueError: a threshold or a batch size that cannot be.
    """

    def __init__(
        self,
        config: str | Path | DictConfig,
        weights: str | Path | None,
        *,
        device: str = "auto",
        dtype: str | torch.dtype = "float32",
        score_threshold: float = 0.0,
        batch_size: int = 8,
        overrides: Sequence[str] = (),
    ) -> None:
        name = str(dtype).removeprefix("torch.")
        if name not in DTYPES:
            raise ConfigError(f"the dtype {name!r} is unknown; use {', '.join(DTYPES)}")
        self.autocast_dtype = DTYPES[name]
        self.config = config if isinstance(config, DictConfig) else load_config(config, overrides)
        self.model: SalienceDETR = instantiate(self.config.model).to(resolve_device(device)).eval()
        names = [] if weights is None else load_weights(self.model, weights)
        self.metadata = dataset_metadata(self.config)
        super().__init__(
            ClassTable.from_metadata(self.metadata, self.model.num_classes, names),
            instantiate(self.config.dataloader.test.mapper),
            size_divisibility=self.model.size_divisibility,
            score_threshold=score_threshold,
            batch_size=batch_size,
        )

    def infer(self, inputs: list[dict[str, Any]]) -> list[tuple[Instances, np.ndarray]]:
        with self.precision():
            return infer(self.model, inputs)

    def precision(self) -> AbstractContextManager[Any]:
        """What the model runs in."""
        if self.autocast_dtype is None:
            return nullcontext()
        return torch.autocast(self.model.device.type, dtype=self.autocast_dtype)


def dataset_metadata(config: DictConfig) -> Any:
    """detectron2's metadata of a config's test set, with the names of its classes where they can be found."""
    dataset = config.dataloader.test.dataset
    name = dataset.names if isinstance(dataset.names, str) else dataset.names[0]
    if dataset.get("json_file"):
        register_coco_dataset(name, dataset.json_file, dataset.image_root)
    ensure_class_names(name)
    return MetadataCatalog.get(name)


def prepare_input(mapper: DetectionMapper, rgb: np.ndarray) -> dict[str, Any]:
    """What the model is given for an (H, W, 3) RGB image."""
    return mapper.prepare_image(rgb[..., ::-1] if mapper.image_format == "BGR" else rgb)


@torch.inference_mode()
def infer(model: SalienceDETR, inputs: list[dict[str, Any]]) -> list[tuple[Instances, np.ndarray]]:
    """Detections, on the CPU, and the salience map of each input, from one pass of a model in evaluation mode."""
    images = model.preprocess_images(inputs)
    encoding = model.encode(images.tensor, padding_mask(images))
    outputs = model.postprocess(model.decode(encoding), encoding.proposals, images, inputs)
    heat = salience_maps(
        merge_salience(encoding.selection.score_maps), inputs, model.size_divisibility
    )
    return [
        (output["instances"].to("cpu"), salience)
        for output, salience in zip(outputs, heat, strict=True)
    ]


def merge_salience(score_maps: Sequence[Tensor]) -> Tensor:
    """L maps (B, H_l, W_l) of logits, finest first -> (B, H_0, W_0) in [0, 1]: the highest salience over the levels."""
    finest = score_maps[0].shape[-2:]
    levels = [
        F.interpolate(
            x[:, None].float().sigmoid(), size=finest, mode="bilinear", align_corners=False
        )
        for x in score_maps
    ]
    return torch.stack(levels).amax(0)[:, 0]


def salience_maps(
    salience: Tensor, inputs: Sequence[dict[str, Any]], size_divisibility: int
) -> list[np.ndarray]:
    """One heat map per image.

    Args:
        salience: (B, H_0, W_0) in [0, 1], over the padded batch.
        inputs: what the model was given: ``image`` (3, h, w), and ``height`` and ``width`` of the image.
        size_divisibility: the padded batch has the largest sides, rounded up to multiples of this.

    Returns:
        (height, width) float32 in [0, 1] of each image.
    """
    longest = max(x["image"].shape[1] for x in inputs)
    stride = math.ceil(longest / size_divisibility) * size_divisibility / salience.shape[1]
    heat = []
    for one, x in zip(salience, inputs, strict=True):
        rows, columns = (max(1, round(size / stride)) for size in x["image"].shape[1:])
        unpadded = one[None, None, :rows, :columns]
        resized = F.interpolate(
            unpadded, size=(x["height"], x["width"]), mode="bilinear", align_corners=False
        )
        heat.append(resized[0, 0].cpu().numpy())
    return heat
