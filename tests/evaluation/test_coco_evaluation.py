"""Evaluation by class name, of several data sets, of own records, and without annotations."""

from __future__ import annotations

import json
import logging

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, BoxMode, Instances
from PIL import Image
from torch import nn

from salience_detr.config import ConfigError, load_config
from salience_detr.data import DatasetError, register_coco_dataset
from salience_detr.evaluation.coco_evaluation import (
    best_metric_of,
    evaluate,
    evaluate_with_ema,
    flat_metrics,
    show_evaluation,
)

# Two images with a box of each of three classes; the boxes do not overlap.
NAMES = ["pit", "burr", "weld"]
BOXES = [[2, 3, 10, 12], [20, 5, 9, 9], [33, 25, 20, 11]]


class PerfectDetector(nn.Module):
    """Finds each class in its place, in every image; class i of the model is in box ``places[i]``.

    Args:
        places: numbers of boxes in ``BOXES``.
    """

    def __init__(self, places):
        super().__init__()
        self.places = places

    def forward(self, inputs):
        outputs = []
        for record in inputs:
            instances = Instances((record["height"], record["width"]))
            boxes = torch.tensor([BOXES[i] for i in self.places], dtype=torch.float32)
            boxes[:, 2:] += boxes[:, :2]
            instances.pred_boxes = Boxes(boxes)
            instances.scores = torch.full((len(boxes),), 0.9)
            instances.pred_classes = torch.arange(len(boxes))
            outputs.append({"instances": instances})
        return outputs


@pytest.fixture
def registry(tmp_path, micro_config):
    """Return functions that register data sets, and a config that evaluates on some of them."""
    names = []
    files = [tmp_path / "a.png", tmp_path / "b.png"]
    for file in files:
        Image.fromarray(np.zeros((48, 64, 3), np.uint8)).save(file)

    def add_coco(name, classes, places, **changes):
        """Register a COCO file; the class at i has the box of number ``places[i]``."""
        images = [
            {"id": i, "file_name": file.name, "height": 48, "width": 64}
            for i, file in enumerate(files, 1)
        ]
        annotations = []
        for image in images:
            for (category_id, _), place in zip(classes, places, strict=True):
                number = len(annotations) + 1
                entry = {"id": number, "image_id": image["id"], "category_id": category_id}
                annotations.append({**entry, "bbox": BOXES[place], "area": 90, "iscrowd": 0})

        content = {
            "images": images,
            "annotations": annotations,
            "categories": [{"id": i, "name": label} for i, label in classes],
            **changes,
        }
        content = {key: value for key, value in content.items() if value is not None}
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
        register_coco_dataset(name, tmp_path / f"{name}.json", tmp_path)
        names.append(name)

    def add_records(name, records, **metadata):
        """Register own records, as a function that returns the list."""
        DatasetCatalog.register(name, lambda: records)
        MetadataCatalog.get(name).set(**metadata)
        names.append(name)

    def configure(test, output="run"):
        config = load_config(micro_config)
        config.train.output_dir = str(tmp_path / output)
        config.dataloader.test.dataset = {
            "_target_": "salience_detr.data.load_dataset",
            "names": test,
        }
        return config

    add_coco.files = files
    yield add_coco, add_records, configure

    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def results_of(config, folder="inference"):
    path = f"{config.train.output_dir}/{folder}/coco_instances_results.json"
    with open(path) as file:
        return json.load(file)


def record(file, places=(0, 1, 2), **extra):
    annotations = [
        {"bbox": BOXES[place], "bbox_mode": BoxMode.XYWH_ABS, "category_id": i}
        for i, place in enumerate(places)
    ]
    return {
        "file_name": str(file),
        "height": 48,
        "width": 64,
        "annotations": annotations,
        **extra,
    }


@pytest.mark.parametrize(
    ("categories", "places", "expected_ids"),
    [
        ([(1, "pit"), (2, "burr"), (3, "weld")], [0, 1, 2], {1, 2, 3}),
        ([(1, "pit"), (3, "weld")], [0, 2], {1, 3}),  # a subset
        ([(9, "weld")], [2], {9}),  # one class, of another id
        ([(2, "pit"), (1, "burr"), (3, "weld")], [0, 1, 2], {1, 2, 3}),  # other ids
        ([(70, "weld"), (7, "burr"), (3, "pit")], [2, 1, 0], {3, 7, 70}),  # another order
    ],
)
def test_classes_go_by_name_and_results_carry_the_ids_of_the_data(
    registry, categories, places, expected_ids
):
    add_coco, _, configure = registry
    add_coco("by_name_val", categories, places)
    config = configure("by_name_val")
    config.model.num_classes = 3

    results = evaluate(config, PerfectDetector([0, 1, 2]), class_names=NAMES)

    assert results["bbox"]["AP"] == pytest.approx(100)
    detections = results_of(config)
    assert {x["category_id"] for x in detections} == expected_ids
    assert len(detections) == 2 * len(categories)


def test_classes_that_the_model_lacks_are_named(registry):
    add_coco, _, configure = registry
    add_coco("unknown_val", [(1, "pit"), (7, "blow hole")], [0, 1])
    config = configure("unknown_val")
    message = "unknown_val has categories that the model lacks: blow hole .id 7. .it has pit, burr"
    with pytest.raises(DatasetError, match=message):
        evaluate(config, PerfectDetector([0, 1, 2]), class_names=NAMES)


@pytest.mark.parametrize(
    ("categories", "precision", "message"),
    [
        # One class more than the model has: of three classes two are found.
        ([(4, "a"), (5, "b"), (6, "c")], 200 / 3, "the model 2: compared in order; never detected"),
        # One class less: detections of the second class are left out.
        ([(4, "a")], 100, "has 1 classes, the model 2: compared in order"),
    ],
)
def test_ignored_names_are_compared_in_order_whatever_their_number(
    registry, caplog, categories, precision, message
):
    add_coco, _, configure = registry
    name = f"in_order_{len(categories)}"
    add_coco(name, categories, list(range(len(categories))))
    config = configure(name)
    config.model.num_classes = 2

    with caplog.at_level(logging.INFO):
        results = evaluate(config, PerfectDetector([0, 1]), class_names=None)

    assert results["bbox"]["AP"] == pytest.approx(precision)
    assert {x["category_id"] for x in results_of(config)} == {4, 5} & {i for i, _ in categories}
    assert message in caplog.text


def test_without_names_the_numbers_of_classes_are_compared(registry):
    add_coco, _, configure = registry
    add_coco("nameless_val", [(1, "pit"), (3, "weld")], [0, 2])
    config = configure("nameless_val")
    config.model.num_classes = 3
    with pytest.raises(DatasetError, match="has 2 classes, but the model has 3"):
        evaluate(config, PerfectDetector([0, 1, 2]))

    config.model.num_classes = 2
    assert evaluate(config, PerfectDetector([0, 2]))["bbox"]["AP"] == pytest.approx(100)


def test_categories_of_one_name_have_a_metric_each(registry):
    add_coco, _, configure = registry
    add_coco("twice_val", [(1, "pit"), (2, "burr"), (3, "burr")], [0, 1, 2])
    config = configure("twice_val")
    config.model.num_classes = 3

    # The second "burr" is looked for in the wrong place.
    metrics = flat_metrics(evaluate(config, PerfectDetector([0, 1, 1])))
    assert metrics["bbox/AP-pit"] == metrics["bbox/AP-burr (id 2)"] == pytest.approx(100)
    assert metrics["bbox/AP-burr (id 3)"] == 0


def test_own_records_with_classes_of_one_name_have_a_metric_each(registry):
    add_coco, add_records, configure = registry
    records = [record(file) for file in add_coco.files]
    add_records("own_twice", records, thing_classes=["pit", "burr", "burr"])
    config = configure("own_twice")
    config.model.num_classes = 3
    metrics = flat_metrics(evaluate(config, PerfectDetector([0, 1, 1])))
    assert metrics["bbox/AP-burr (id 1)"] == pytest.approx(100)
    assert metrics["bbox/AP-burr (id 2)"] == 0


def test_dropped_categories_are_no_classes(registry, tmp_path):
    add_coco, _, configure = registry
    categories = [{"id": 0, "name": "parts"}, {"id": 1, "name": "pit"}, {"id": 2, "name": "burr"}]
    add_coco("rooted", [(1, "pit"), (2, "burr")], [0, 1], categories=categories)
    DatasetCatalog.remove("rooted")
    MetadataCatalog.remove("rooted")
    register_coco_dataset("rooted", tmp_path / "rooted.json", tmp_path, drop_categories=[0])

    config = configure("rooted")
    config.model.num_classes = 2
    metrics = flat_metrics(evaluate(config, PerfectDetector([0, 1])))
    assert metrics["bbox/AP-pit"] == metrics["bbox/AP-burr"] == pytest.approx(100)
    assert "bbox/AP-parts" not in metrics


@pytest.mark.parametrize("suffix", ["", ", to draw"])
def test_a_file_without_annotations_gives_a_results_file_without_metrics(
    registry, caplog, tmp_path, suffix
):
    add_coco, _, configure = registry
    add_coco("test_dev", [(4, "pit"), (5, "burr"), (6, "weld")], [0, 1, 2], annotations=None)
    config = configure("test_dev")

    with caplog.at_level("INFO", "salience_detr"):
        assert evaluate(config, PerfectDetector([0, 1, 2]), class_names=NAMES) == {}
    assert {x["category_id"] for x in results_of(config)} == {4, 5, 6}
    assert "test_dev has no annotations" in caplog.text

    if suffix:
        show_evaluation(config, tmp_path / "shown")
        assert len(list((tmp_path / "shown").iterdir())) == 2


def test_several_test_sets_are_evaluated_one_by_one(registry, tmp_path):
    add_coco, add_records, configure = registry
    add_coco("first_val", [(1, "pit"), (2, "burr"), (3, "weld")], [0, 1, 2])
    records = [record(add_coco.files[0], [1, 0])]
    add_records("second/val", records, thing_classes=["burr", "pit"])
    config = configure(["first_val", "second/val"])
    config.model.num_classes = 3

    config.train.ema.evaluate = "both"

    model = PerfectDetector([0, 1, 1])  # takes burr for weld
    metrics = evaluate_with_ema(config, model, model, NAMES)

    for prefix in ("", "ema/"):
        assert metrics[f"{prefix}first_val/bbox/AP"] == pytest.approx(200 / 3)
        assert metrics[f"{prefix}second/val/bbox/AP"] == pytest.approx(100)
    assert best_metric_of(config) == "first_val/bbox/AP"
    assert len(results_of(config, "inference/first_val")) == 6
    assert len(results_of(config, "inference_ema/second_val")) == 2

    show_evaluation(config, tmp_path / "shown")
    assert len(list((tmp_path / "shown" / "first_val").iterdir())) == 2
    assert len(list((tmp_path / "shown" / "second_val").iterdir())) == 1


def test_a_list_of_one_set_is_that_set(registry):
    add_coco, _, configure = registry
    add_coco("only_val", [(1, "pit"), (2, "burr"), (3, "weld")], [0, 1, 2])
    config = configure(["only_val"])
    config.model.num_classes = 3
    assert evaluate(config, PerfectDetector([0, 1, 2]))["bbox"]["AP"] == pytest.approx(100)
    assert best_metric_of(config) == "bbox/AP"

    config.train.best_metric = "bbox/AP5"
    with pytest.raises(ConfigError, match="'bbox/AP5' is no metric of COCOEvaluator: bbox/AP, "):
        best_metric_of(config)


@pytest.mark.parametrize("with_ids", [False, True])
def test_own_records_are_evaluated_as_they_are_now(registry, with_ids):
    add_coco, add_records, configure = registry
    records = []
    for number, file in enumerate(add_coco.files):
        ids = {"image_id": f"image {number}"} if with_ids else {}
        records.append(record(file, **ids))
    add_records("own_val", records, thing_classes=NAMES)
    config = configure("own_val")
    config.model.num_classes = 3
    model = PerfectDetector([0, 1, 2])

    assert evaluate(config, model)["bbox"]["AP"] == pytest.approx(100)
    expected = {"image 0", "image 1"} if with_ids else {0, 1}
    assert {x["image_id"] for x in results_of(config)} == expected

    # Someone corrects the boxes of one class; the folder has the file of the evaluation before.
    for entry in records:
        entry["annotations"][2]["bbox"] = [50, 40, 5, 5]
    assert evaluate(config, model)["bbox"]["AP"] == pytest.approx(200 / 3)


def test_own_records_keep_the_ids_of_their_categories(registry):
    add_coco, add_records, configure = registry
    records = [record(file) for file in add_coco.files]
    ids = {10: 0, 5: 1, 77: 2}
    metadata = {"thing_classes": NAMES, "thing_dataset_id_to_contiguous_id": ids}
    add_records("own_ids", records, **metadata)
    config = configure("own_ids")
    config.model.num_classes = 3
    metrics = flat_metrics(evaluate(config, PerfectDetector([0, 1, 1])))

    assert [metrics[f"bbox/AP-{name}"] for name in NAMES] == pytest.approx([100, 100, 0])
    assert {x["category_id"] for x in results_of(config)} == {5, 10, 77}


def test_own_records_without_class_names_are_evaluated(registry):
    add_coco, add_records, configure = registry
    add_records("own_nameless", [record(file) for file in add_coco.files])
    config = configure("own_nameless")
    config.model.num_classes = 3
    assert evaluate(config, PerfectDetector([0, 1, 2]), class_names=NAMES)["bbox"]["AP"] == (
        pytest.approx(100)
    )


def test_own_records_without_annotations_give_a_results_file(registry):
    add_coco, add_records, configure = registry
    records = [{"file_name": str(file), "height": 48, "width": 64} for file in add_coco.files]
    add_records("own_test", records, thing_classes=NAMES)
    config = configure("own_test")
    config.model.num_classes = 3
    assert evaluate(config, PerfectDetector([0, 1, 2])) == {}
    assert len(results_of(config)) == 6


def test_own_records_with_one_id_for_two_images_are_an_error(registry):
    add_coco, add_records, configure = registry
    add_records("own_same", [record(file, image_id=3) for file in add_coco.files])
    with pytest.raises(DatasetError, match="several images with the image_id 3; give each its own"):
        evaluate(configure("own_same"), PerfectDetector([0, 1, 2]))
