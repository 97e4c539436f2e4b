"""Object detection on single images and batches, in a few lines of Python."""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from detectron2.config import instantiate
from detectron2.data import Metadata, MetadataCatalog
from detectron2.structures import Boxes, Instances
from omegaconf import DictConfig

from salience_detr.checkpoint import ScoreThresholds, load_weights, read_thresholds
from salience_detr.checkpoint.paths import local_path
from salience_detr.checkpoint.score_thresholds import ScoreThreshold
from salience_detr.config import ConfigError, resolve_device
from salience_detr.data.classes import ClassList, classes_of
from salience_detr.data.coco_dataset import register_coco_dataset
from salience_detr.data.datasets import as_list, ensure_class_names
from salience_detr.data.image_size import set_test_size
from salience_detr.detections import ClassTable
from salience_detr.detector import ModelDetector
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
