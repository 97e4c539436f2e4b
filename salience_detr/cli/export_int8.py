"""The part of the export that writes int8: images to calibrate on, and AP on validation data."""

from __future__ import annotations

import argparse
import copy
import dataclasses
import math
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from detectron2.config import instantiate
from omegaconf import DictConfig

from salience_detr.checkpoint import read_classes
from salience_detr.data import DatasetError
from salience_detr.data.coco_format import read_coco
from salience_detr.data.datasets import as_list, has_boxes
from salience_detr.data.image_files import locate_images
from salience_detr.engine.own_data import use_own_data
from salience_detr.evaluation.comparison import find_image_folder
from salience_detr.evaluation.detector_evaluation import evaluate_detector
from salience_detr.evaluation.results import make_coco
from salience_detr.export import DetectorInfo, OpenVinoDetector
from salience_detr.export.acceptance import Acceptance
from salience_detr.export.info import Quantization
from salience_detr.export.openvino import save_openvino
from salience_detr.export.quantization import INT8_INSTRUCTIONS, find_layers, quantize
from salience_detr.inference.inputs import collect_inputs, is_video
from salience_detr.predictor import Predictor
from salience_detr.utils.processor import has_instructions

if TYPE_CHECKING:  # the package is optional
    import openvino


@dataclass(frozen=True)
class Validation:
    """Images with annotations that AP is measured on.

    Attributes:
        config: its ``dataloader.test`` reads them.
        num_images: number of images.
        class_names: names of the model's classes; empty if the weights do not name them.
    """

    config: DictConfig
    num_images: int
    class_names: tuple[str, ...]

    @property
    def source(self) -> str:
        """Return what the data set is called in the metadata of a file."""
        return as_list(self.config.dataloader.test.dataset.names)[0]


def calibration_images(source: Path, count: int) -> list[Path]:
    """Return images of a folder or of an annotation file, evenly spread over their order.

    Raises:
        DatasetError, ResultsError: the annotations or their images are not usable.
        FileNotFoundError: there are no images.
    """
    if source.suffix == ".json":
        coco = make_coco(read_coco(source, lists=("images",)))
        folder = find_image_folder(source, coco)
        located = locate_images(folder, [image["file_name"] for image in coco.dataset["images"]])
        paths = [path for name, path in located.paths.items() if name not in located.missing]
    elif source.is_dir():
        paths = [path for path in collect_inputs([str(source)]).files if not is_video(path)]
    else:
        raise FileNotFoundError(f"--calibration {source} is neither a folder nor a .json file")

    if not paths:
        raise FileNotFoundError(f"--calibration {source} has no images")
    taken = min(count, len(paths))
    return [paths[i * len(paths) // taken] for i in range(taken)]


def find_validation(predictor: Predictor, args: argparse.Namespace) -> Validation | None:
    """Return the data to measure AP on: own data, or those of the config if they are at hand.

    Raises:
        ConfigError, DatasetError: own data are not usable.
    """
    if args.no_validation or not args.weights:
        return None

    config = copy.deepcopy(predictor.config)
    own_names = config.dataloader.test.dataset.names
    use_own_data(config, args, needed=("val",))
    config.model.num_classes = predictor.model.num_classes
    is_own = config.dataloader.test.dataset.names != own_names
    try:
        records = instantiate(config.dataloader.test.dataset)
    except DatasetError:
        if is_own:
            raise
        return None

    if not has_boxes(records):
        return None
    classes = read_classes(args.weights)
    return Validation(config, len(records), tuple(classes.names) if classes is not None else ())


def average_precision(model: openvino.Model, info: DetectorInfo, validation: Validation) -> float:
    """Return the AP of a graph, written and run as it will be, in percent."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.xml"
        save_openvino(model.clone(), path, info)
        detector = OpenVinoDetector(path, device="cpu")
        names = validation.class_names
        ap = evaluate_detector(validation.config, detector, class_names=names, progress=True)["AP"]

    if math.isnan(ap):
        raise DatasetError(f"{validation.source} gives no AP; add --no-validation")
    return ap


def write_int8(
    model: openvino.Model,
    info: DetectorInfo,
    images: list[Path],
    validation: Validation | None,
    args: argparse.Namespace,
) -> None:
    """Quantize a graph, accept it by AP if there are data for that, and write it.

    Raises:
        ExportError: int8 loses too much whatever is given back to float32.
    """
    if not has_instructions(INT8_INSTRUCTIONS):
        print("note: this processor has no VNNI or AMX: int8 is not faster than float32 here")

    groups = Counter(find_layers(model).values())
    print(f"calibrating on {len(images)} images of {args.calibration}", flush=True)
    quantization = Quantization(tuple(groups), (), str(args.calibration), len(images))
    if validation is None:
        quantized = quantize(model, info, images)
        print("accuracy was not checked: add --data-dir DIR to measure AP on its validation images")
    else:
        print(f"measuring AP on {validation.num_images} images of {validation.source}", flush=True)
        acceptance = Acceptance(
            model,
            info,
            images,
            measure=lambda graph: average_precision(graph, info, validation),
            max_drop=args.max_ap_drop,
        )
        accepted = acceptance.search()
        quantized = accepted.model
        quantization = dataclasses.replace(
            quantization,
            int8=tuple(group for group in groups if group not in accepted.float_groups),
            float32=accepted.float_groups,
            validation=validation.source,
            float_ap=accepted.float_ap,
            ap=accepted.ap,
        )

    layers = ", ".join(f"{group} ({groups[group]})" for group in quantization.int8)
    print(f"int8: {layers}", flush=True)
    save_openvino(quantized, args.output, dataclasses.replace(info, quantization=quantization))
