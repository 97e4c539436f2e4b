"""Object detection on single images and batches, in a few lines of Python."""

from __future__ import annotations

import copy
import logging
import math
import time
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import torch
from detectron2.config import instantiate
from detectron2.data import Metadata, MetadataCatalog
from detectron2.structures import Boxes, Instances
from omegaconf import DictConfig
from torch import Tensor

from salience_detr.checkpoint import ScoreThresholds, load_weights, read_thresholds
from salience_detr.checkpoint.paths import local_path
from salience_detr.checkpoint.score_thresholds import BEST, ScoreThreshold, resolve_thresholds
from salience_detr.config import ConfigError, resolve_device
from salience_detr.data.classes import ClassList, classes_of
from salience_detr.data.coco_dataset import register_coco_dataset
from salience_detr.data.datasets import as_list, ensure_class_names
from salience_detr.data.image_size import set_test_size
from salience_detr.data.images import ImageLike, as_batch, to_rgb
from salience_detr.data.mapper import DetectionMapper
from salience_detr.data.value_range import ValueRange
from salience_detr.detections import ClassTable, Detections, is_confident
from salience_detr.modeling import SalienceDETR
from salience_detr.modeling.masks import padding_mask
from salience_detr.modeling.optimization import check_optimization, optimize_model
from salience_detr.modeling.salience_maps import merge_salience, salience_maps
from salience_detr.modeling.structures import ModelInput
from salience_detr.pretrained import load_config_of
from salience_detr.utils.processor import is_emulated

if TYPE_CHECKING:
    from typing_extensions import Self

logger = logging.getLogger(__name__)

# Seconds from which a compiled model's call counts as one that has compiled; none detects so long.
SHORTEST_COMPILATION = 10.0

# Dtypes of autocast by their names; float32 needs none.
DTYPES = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class PredictorOutput:
    """Output of a detector for one image.

    Attributes:
        detections: the detections, in the frame of the image.
        salience: (H, W) float32 in [0, 1], the salience of each pixel. On tiles of a very large
            image the map is smaller than the image.
    """

    detections: Detections
    salience: np.ndarray


class Detector(ABC):
    """Interface of everything that detects objects on images; subclasses define :meth:`stream`.

    Attributes:
        classes: classes of the model.
        batch_size: maximum number of images that are computed together.
        source: file of the weights, for messages.
    """

    classes: ClassTable
    batch_size: int
    source: str = "this detector"

    @property
    def class_names(self) -> list[str]:
        """Return the name of each class; its number where no name is known."""
        return list(self.classes.names)

    @property
    @abstractmethod
    def value_range(self) -> ValueRange:
        """Return the range of the values of deep images; chosen from the first if none is given."""

    @property
    def best_thresholds(self) -> ScoreThresholds | None:
        """Return the score thresholds that are stored beside the weights, None if none are."""
        return None

    def class_thresholds(self, score_threshold: ScoreThreshold) -> Tensor:
        """Return the (K,) score threshold of each class.

        Args:
            score_threshold: one number for all classes; numbers by class name, the others being 0;
                or "best", the stored ones of the highest F1 of each class.

        Raises:
            ValueError: it is out of range, a class is unknown, or none are stored.
        """
        classes = ClassList(self.classes.names, self.classes.category_ids)
        best = self.best_thresholds if score_threshold == BEST else None
        values = resolve_thresholds(score_threshold, classes, best, source=self.source)
        return torch.tensor(values, dtype=torch.float64)

    @overload
    def __call__(self, image: ImageLike, *, channel_order: str = "RGB") -> Detections: ...

    @overload
    def __call__(
        self, image: Sequence[ImageLike], *, channel_order: str = "RGB"
    ) -> list[Detections]: ...

    def __call__(
        self, image: ImageLike | Sequence[ImageLike], *, channel_order: str = "RGB"
    ) -> Detections | list[Detections]:
        """Return the detections on an image, or a list of them for several images.

        Args:
            image: a path, a PIL image, an array or a tensor (see
                :func:`salience_detr.data.images.to_rgb`); or a list of them, a (B, 3, H, W) tensor
                or a (B, H, W, 3) array.
            channel_order: "RGB" or "BGR", of arrays and tensors; OpenCV reads images as "BGR".

        Raises:
            ImageReadError: a file cannot be read.
            ValueError, TypeError: the argument is not an image.
        """
        images = as_batch(image)
        if images is None:
            return self.batch([image], channel_order=channel_order)[0]  # type: ignore[list-item]

        return self.batch(images, channel_order=channel_order)

    def batch(self, images: Sequence[ImageLike], *, channel_order: str = "RGB") -> list[Detections]:
        """Return the detections on each image."""
        return [output.detections for output in self.stream(images, channel_order=channel_order)]

    @abstractmethod
    def stream(
        self, images: Sequence[ImageLike], *, channel_order: str = "RGB"
    ) -> Iterator[PredictorOutput]:
        """Yield detections and salience of each image, with one batch in memory at a time."""


class ModelDetector(Detector):
    """Detector that runs a model; subclasses say how. Several threads may call it at a time.

    Images are computed together only if they are padded to the same size: with more padding beside
    it, the detections on an image would change.

    Args:
        classes: classes of the model.
        mapper: mapper that turns images into model inputs.
        size_divisibility: the sides of a batch are rounded up to multiples of this.
        score_threshold: detections with lower scores are left out; see
            :meth:`Detector.class_thresholds`.
        batch_size: maximum number of images that are computed together.

    Attributes:
        score_thresholds: (K,) lowest score of the detections of each class.

    Raises:
        ValueError: the threshold or the batch size is out of range.
    """

    def __init__(
        self,
        classes: ClassTable,
        mapper: DetectionMapper,
        *,
        size_divisibility: int = 32,
        score_threshold: ScoreThreshold = 0.0,
        batch_size: int = 8,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; it must be at least 1")

        self.classes = classes
        self.mapper = mapper
        self.size_divisibility = size_divisibility
        self.score_thresholds = self.class_thresholds(score_threshold)
        self.batch_size = batch_size

    @property
    def value_range(self) -> ValueRange:
        return self.mapper.value_range

    def stream(
        self, images: Sequence[ImageLike], *, channel_order: str = "RGB"
    ) -> Iterator[PredictorOutput]:
        for start in range(0, len(images), self.batch_size):
            batch = images[start : start + self.batch_size]
            pixels = [to_rgb(image, channel_order, self.value_range) for image in batch]
            inputs = [prepare_input(self.mapper, rgb) for rgb in pixels]
            results = self._infer_by_size(inputs)

            for image, (instances, salience) in zip(batch, results, strict=True):
                confident = instances[is_confident(instances, self.score_thresholds)]
                read_image = partial(to_rgb, image, channel_order, self.value_range)
                yield PredictorOutput(Detections(confident, self.classes, read_image), salience)

    def _infer_by_size(self, inputs: list[ModelInput]) -> list[tuple[Instances, np.ndarray]]:
        """Run the model on the inputs; those that are padded to the same size go together."""
        # Indices of the inputs by their size after padding.
        groups = defaultdict(list)
        for i, model_input in enumerate(inputs):
            sides = model_input["image"].shape[1:]
            padded_size = tuple(math.ceil(side / self.size_divisibility) for side in sides)
            groups[padded_size].append(i)

        results: dict[int, tuple[Instances, np.ndarray]] = {}
        for group in groups.values():
            outputs = self._infer([inputs[i] for i in group])
            results.update(zip(group, outputs, strict=True))

        # In the order of the inputs again.
        return [results[i] for i in range(len(inputs))]

    @abstractmethod
    def _infer(self, inputs: list[ModelInput]) -> list[tuple[Instances, np.ndarray]]:
        """Run the model on one batch.

        Returns:
            instances, on the CPU, and (height, width) salience of each input.
        """


class Predictor(ModelDetector):
    """Detector that runs the model of a LazyConfig file on images, exactly as evaluation does.

    Args:
        config: a LazyConfig file, the name of a config of the model zoo, or its content; None for
            the one that the weights name, or that lies beside them.
        weights: a checkpoint that :func:`salience_detr.checkpoint.load_weights` reads, or the name
            of a config with published weights; None keeps random weights.
        device: "cpu", "cuda", ..., or "auto" for a GPU if there is one.
        dtype: "float32", "bfloat16" or "float16", or PyTorch's. The model computes in it by
            autocast; weights, coordinates and results stay in float32.
        score_threshold: detections with lower scores are left out: a number, numbers by class name
            (0 for the others), or "best" for those that ``salience-detr
            analyze errors --save-thresholds`` has stored in the weights.
        batch_size: maximum number of images that are computed together.
        overrides: ``key=value`` changes of the config.
        trust_config: let a .yaml config call whatever it names; a .py config is code anyway.
        image_size: shorter side of the resized images; None keeps the config's.
        ignore_class_names: do not compare the classes of the weights with those of the config's
            test set. They are compared where a config is given and its annotation file is at hand:
            the rows of the weights are put into its order.
        optimize: "fused" folds norms into convolutions in a copy that detects; "compiled" also
            compiles it, which takes a minute at the first image, and again at the first one of
            another width and of another height, after padding; "none" detects with the model
            itself, whose weights may then be changed between images.

    Attributes:
        model: the model as it was loaded.

    Raises:
        ConfigError, CheckpointError: the config or the weights cannot be used, or the weights lack
            classes of the test set.
        ValueError: the threshold or the batch size is out of range, or there is no such
            optimization.
    """

    def __init__(
        self,
        config: str | Path | DictConfig | None,
        weights: str | Path | None,
        *,
        device: str = "auto",
        dtype: str | torch.dtype = "float32",
        score_threshold: ScoreThreshold = 0.0,
        batch_size: int = 8,
        overrides: Sequence[str] = (),
        trust_config: bool = False,
        image_size: int | None = None,
        ignore_class_names: bool = False,
        optimize: str = "fused",
    ) -> None:
        check_optimization(optimize)
        self.optimize = optimize

        dtype_name = str(dtype).removeprefix("torch.")
        if dtype_name not in DTYPES:
            raise ConfigError(f"the dtype {dtype_name!r} is unknown; use {', '.join(DTYPES)}")

        self.autocast_dtype = DTYPES[dtype_name]

        is_named_by_weights = config is None
        if not isinstance(config, DictConfig):
            config = load_config_of(weights, config, overrides, trust=trust_config)
        self.config = config
        if image_size is not None:
            self.config = copy.deepcopy(config)
            set_test_size(self.config, image_size)
        model = instantiate(self.config.model)
        if not isinstance(model, SalienceDETR):
            raise ConfigError(
                f"the config's model is a {type(model).__name__}, and only a SalienceDETR can be "
                "run or exported here; train_net.py --eval-only evaluates other detectors"
            )
        self.model = model.to(resolve_device(device)).eval()
        if is_emulated(self.autocast_dtype, self.model.device):
            logger.warning(
                "this processor only emulates bfloat16, which is much slower: take dtype float32"
            )
        self.weights = weights
        self.source = "a model with random weights"

        # Registered classes are compared only if a config was chosen and the data set itself is at
        # hand: the config of one data set may serve for the weights of another.
        metadata = dataset_metadata(self.config)
        data_classes = classes_of(metadata)
        if data_classes is not None:
            data_classes = data_classes.numbered()
        classes = data_classes
        if weights is not None:
            in_order = ignore_class_names or is_named_by_weights or not is_at_hand(metadata)
            classes = load_weights(
                self.model, weights, classes=data_classes, ignore_class_names=in_order
            )
            self.source = local_path(weights)  # a folder or a name stands for a file

        super().__init__(
            class_table(classes, metadata, self.model.num_classes),
            instantiate(self.config.dataloader.test.mapper),
            size_divisibility=self.model.size_divisibility,
            score_threshold=score_threshold,
            batch_size=batch_size,
        )

    @classmethod
    def from_pretrained(cls, weights: str | Path, **settings: Any) -> Self:
        """Load trained weights with the config that belongs to them.

        Args:
            weights: the name of a model (``salience_detr.model_zoo.list_models(pretrained=True)``),
                whose weights are shipped or downloaded; a checkpoint, which names its config or has
                config.yaml beside it; the folder of a run, for its best weights; a URL; or
                ``hf://owner/name`` and ``hf://owner/name/file`` of the Hugging Face hub.
            settings: the others of :class:`Predictor`, such as device and score_threshold.

        Raises:
            ConfigError, CheckpointError, ValueError: see :class:`Predictor`; or the weights cannot
                be downloaded (says where to put them), or nothing tells their config.
        """
        return cls(None, weights, **settings)

    @cached_property
    def best_thresholds(self) -> ScoreThresholds | None:
        return None if self.weights is None else read_thresholds(self.weights)

    def _infer(self, inputs: list[ModelInput]) -> list[tuple[Instances, np.ndarray]]:
        start = time.perf_counter()
        with self.precision():
            results = detect_with_salience(self.model, inputs, optimized=self.optimized_model)

        seconds = time.perf_counter() - start
        if self.optimize == "compiled" and seconds > SHORTEST_COMPILATION:
            sizes = ", ".join("{}x{}".format(*x["image"].shape[1:]) for x in inputs)
            logger.warning("compiled for images of %s pixels, in %.0f s", sizes, seconds)
        return results

    @cached_property
    def optimized_model(self) -> SalienceDETR:
        """Return the model whose stages compute, which is made for the first image."""
        return optimize_model(self.model, self.optimize, self.autocast_dtype)

    def precision(self) -> torch.autocast:
        """Return the context in which the model runs."""
        enabled = self.autocast_dtype is not None
        return torch.autocast(self.model.device.type, dtype=self.autocast_dtype, enabled=enabled)


def dataset_metadata(config: DictConfig) -> Metadata:
    """Return the metadata of a config's test set, with class names where they can be found."""
    dataset = config.dataloader.test.dataset
    name = as_list(dataset.names)[0]
    if dataset.get("json_file"):
        dropped = dataset.get("drop_categories", ())
        register_coco_dataset(name, dataset.json_file, dataset.image_root, dropped)

    ensure_class_names(name)
    return MetadataCatalog.get(name)


def is_at_hand(metadata: Metadata) -> bool:
    """Return whether a registered data set exists; those without files are loaded by code."""
    paths = (metadata.get("json_file"), metadata.get("dirname"))
    return all(Path(path).exists() for path in paths if path is not None)


def class_table(classes: ClassList | None, metadata: Metadata, num_classes: int) -> ClassTable:
    """Return the table of a model's classes, with the colors of the data set if it has the same."""
    if classes is not None and len(classes) != num_classes:
        classes = None

    data_classes = classes_of(metadata)
    colors = None
    if classes is not None and data_classes is not None and classes.names == data_classes.names:
        colors = metadata.get("thing_colors", None)
        colors = colors and tuple(tuple(color) for color in colors)
    return ClassTable.build(classes, num_classes, colors)


def prepare_input(mapper: DetectionMapper, rgb: np.ndarray) -> ModelInput:
    """Return the model input of an (H, W, 3) uint8 RGB image."""
    if mapper.image_format == "BGR":
        return mapper.prepare_image(rgb[..., ::-1])
    return mapper.prepare_image(rgb)


@torch.inference_mode()
def detect_with_salience(
    model: SalienceDETR, inputs: list[ModelInput], *, optimized: SalienceDETR | None = None
) -> list[tuple[Instances, np.ndarray]]:
    """Run a model in evaluation mode once, for detections and salience.

    Args:
        model: whose detections these are; its limit of detections may have been changed since.
        optimized: its faster copy that computes, if there is one.

    Returns:
        instances, on the CPU, and (height, width) salience of each input.
    """
    if optimized is None:
        optimized = model

    # The stages of the model's own inference, which does not return the salience.
    images = model.preprocess_image(inputs)
    encoding = optimized.encode(images.tensor, padding_mask(images))
    outputs = model.postprocess(optimized.decode(encoding), encoding.proposals, images, inputs)

    merged = merge_salience(encoding.selection.score_maps)
    maps = salience_maps(merged, inputs, model.size_divisibility)
    instances = copy_to_cpu([output["instances"] for output in outputs])
    return list(zip(instances, maps, strict=True))


def copy_to_cpu(detections: list[Instances]) -> list[Instances]:
    """Copy the model's detections on several images to the CPU, in one transfer."""
    tables = []
    for instances in detections:
        columns = [instances.scores[:, None], instances.pred_classes[:, None]]
        tables.append(torch.cat([instances.pred_boxes.tensor, *columns], dim=1))

    lengths = [len(table) for table in tables]
    copied = torch.cat(tables).cpu().split(lengths)

    results = []
    for instances, table in zip(detections, copied, strict=True):
        boxes, scores, classes = table.split([4, 1, 1], dim=1)
        results.append(
            Instances(
                instances.image_size,
                pred_boxes=Boxes(boxes),
                scores=scores[:, 0],
                pred_classes=classes[:, 0].long(),
            )
        )
    return results
