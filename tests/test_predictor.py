"""The Python interface."""

from __future__ import annotations

import copy
import json
import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from detectron2.config import instantiate
from detectron2.structures import Boxes, Instances
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from salience_detr import Predictor
from salience_detr.checkpoint import (
    CheckpointError,
    ScoreThresholds,
    read_thresholds,
    save_weights,
)
from salience_detr.checkpoint.published import SHIPPED
from salience_detr.config import ConfigError, load_config
from salience_detr.data import register_surface_defects
from salience_detr.data.classes import ClassList
from salience_detr.data.images import to_rgb
from salience_detr.export import DetectorInfo
from salience_detr.export.verification import compare
from salience_detr.modeling.salience_maps import merge_salience, salience_maps
from salience_detr.utils.drawing import class_colors, draw_detections, draw_salience

ROOT = Path(__file__).resolve().parents[1]
BIAS = "query_selection.class_head.bias"
BEST_CONTENT = {"classes": {}, "overall": 0.5, "iou_threshold": 0.5, "source": "val.json"}


@pytest.fixture
def predictor(micro_config, surface_data):
    return Predictor(micro_config, None, device="cpu")


def test_detections_equal_those_of_the_evaluation_loader(predictor, surface_data, micro_config):
    config = load_config(micro_config)
    unchanged = copy.copy(predictor)
    unchanged.optimize = "none"
    for inputs in list(instantiate(config.dataloader.test))[:2]:
        with torch.no_grad():
            expected = predictor.model(inputs)[0]["instances"]
        found = unchanged(inputs[0]["file_name"])
        assert torch.equal(found.scores, expected.scores)
        assert torch.equal(found.pred_boxes.tensor, expected.pred_boxes.tensor)

        # Folded constants round in another way.
        fused = predictor(inputs[0]["file_name"])
        torch.testing.assert_close(fused.scores, expected.scores, rtol=0, atol=1e-6)
        assert torch.equal(fused.pred_classes, expected.pred_classes)


@pytest.mark.parametrize("name", SHIPPED)
def test_the_fused_copy_of_shipped_weights_detects_the_same(name, surface_data):
    plain = Predictor.from_pretrained(name, device="cpu", optimize="none")
    fused = Predictor.from_pretrained(name, device="cpu")
    for path in sorted((surface_data / "val").glob("*.jpg"))[:2]:
        difference = compare(plain(path), fused(path))
        assert difference.unmatched == 0 and difference.score < 1e-5 and difference.box < 0.01


def test_the_time_of_a_compilation_is_told(predictor, surface_data, monkeypatch, caplog):
    clock = SimpleNamespace(perf_counter=iter([100.0, 142.3]).__next__)
    monkeypatch.setattr("salience_detr.predictor.time", clock)
    monkeypatch.setattr(predictor, "optimize", "compiled")
    monkeypatch.setitem(vars(predictor), "optimized_model", predictor.model)  # compiled before
    predictor(surface_data / "val" / "000001.jpg")
    assert "compiled for images of 64x64 pixels, in 42 s" in caplog.text


def test_an_unknown_optimization_is_refused_before_the_weights_are_read(micro_config):
    with pytest.raises(ValueError, match="no optimization 'fast'; use none, fused, compiled"):
        Predictor(micro_config, "missing.pth", device="cpu", optimize="fast")


def test_paths_pil_images_and_arrays_give_the_same(predictor, surface_data):
    path = surface_data / "val" / "000001.jpg"
    image = Image.open(path)
    results = [predictor(x).scores for x in (path, str(path), image, np.asarray(image))]
    assert all(torch.equal(results[0], x) for x in results[1:])


def test_a_batch_equals_its_images(predictor, surface_data):
    paths = [surface_data / "val" / f"00000{i}.jpg" for i in (1, 2, 3)]
    together = predictor.batch(paths)
    assert [len(x) for x in together] == [len(predictor(path)) for path in paths]
    torch.testing.assert_close(together[1].scores, predictor(paths[1]).scores, rtol=1e-4, atol=1e-5)
    assert predictor.batch([]) == []


def test_the_threshold_holds_and_names_are_known(micro_config, surface_data):
    predictor = Predictor(micro_config, None, device="cpu", score_threshold=0.02)
    found = predictor(surface_data / "val" / "000001.jpg")
    assert (found.scores >= 0.02).all()
    assert predictor.class_names == ["scratch", "pit", "inclusion", "crack", "stain", "dent"]


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (np.full((2, 3), 7, np.uint8), 7),
        (np.full((2, 3, 1), 7, np.uint8), 7),
        (np.full((2, 3, 4), 7, np.uint8), 7),
        (np.full((2, 3, 3), 7 * 256 + 9, np.uint16), 7),
    ],
)
def test_other_arrays_become_rgb(image, expected):
    found = to_rgb(image)
    assert found.shape == (2, 3, 3) and found.dtype == np.uint8 and (found == expected).all()


@pytest.mark.parametrize(
    "image", [np.zeros((2, 3, 5), np.uint8), np.zeros((2, 3, 3)), np.zeros((0, 3, 3), np.uint8)]
)
def test_arrays_that_are_no_images_are_described(image):
    with pytest.raises(ValueError, match="an image is an array of shape"):
        to_rgb(image)


def test_salience_is_cut_to_the_image_and_takes_the_highest_level():
    fine, coarse = torch.full((1, 4, 4), -20.0), torch.full((1, 2, 2), -20.0)
    fine[0, 0, 0], coarse[0, 1, 1] = 20.0, 20.0
    # The image fills the left half of a padded 32 x 32 one; it was 64 x 32 before it was resized.
    inputs = [{"image": torch.zeros(3, 32, 16), "height": 64, "width": 32}]
    heat = salience_maps(merge_salience([fine, coarse]), inputs, 32)[0]
    assert heat.shape == (64, 32) and heat.max() > 0.5
    assert np.unravel_index(heat.argmax(), heat.shape)[0] < 16  # the token at the upper left


def test_drawing_marks_the_box_in_its_color_and_leaves_the_image_alone(predictor, surface_data):
    image = np.zeros((100, 120, 3), np.uint8)
    instances = Instances((100, 120), scores=torch.tensor([0.9]), pred_classes=torch.tensor([2]))
    instances.pred_boxes = Boxes(torch.tensor([[20.0, 30.0, 80.0, 90.0]]))
    colors = class_colors(6)
    drawn = draw_detections(image, instances, class_names=predictor.class_names, colors=colors)
    assert tuple(drawn[90, 50]) == colors[2] and tuple(drawn[60, 50]) == (0, 0, 0)
    assert not image.any()
    assert not draw_detections(image, instances[[]], class_names=predictor.class_names).any()


def test_salience_is_drawn_from_dark_to_bright():
    drawn = draw_salience(
        np.zeros((2, 2, 3), np.uint8), np.array([[0.0, 1.0], [0.0, 1.0]], np.float32)
    )
    assert drawn[0, 1].sum() > drawn[0, 0].sum()


def test_colors_differ_and_known_ones_come_first():
    colors = class_colors(20, known=[[1, 2, 3]])
    assert colors[0] == (1, 2, 3) and len(set(colors)) == 20


def test_images_of_sixteen_bits_keep_their_upper_eight(tmp_path):
    deep = np.linspace(0, 65535, 12 * 16).astype(np.uint16).reshape(12, 16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    for image in (tmp_path / "deep.png", Image.open(tmp_path / "deep.png"), deep):
        assert np.array_equal(to_rgb(image)[..., 0], deep >> 8)


def test_a_pil_image_is_turned_as_its_file_is(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned by 90 degrees
    Image.fromarray(np.random.randint(0, 255, (20, 30, 3), np.uint8)).save(
        tmp_path / "turned.png", exif=exif
    )
    assert to_rgb(tmp_path / "turned.png").shape == (30, 20, 3)
    assert np.array_equal(
        to_rgb(tmp_path / "turned.png"), to_rgb(Image.open(tmp_path / "turned.png"))
    )


def test_a_salience_map_leaves_padding_out_on_both_sides():
    # 40 x 72 is padded to 64 x 96. A map of stride 8 has 8 x 12 places, 5 x 9 of them unpadded.
    logits = torch.full((1, 8, 12), 9.0)
    logits[:, :5, :9] = -9.0
    inputs = [{"image": torch.zeros(3, 40, 72), "height": 40, "width": 72}]
    assert salience_maps(merge_salience([logits]), inputs, 32)[0].max() < 0.01


def test_the_shipped_weights_name_the_defects_of_real_photographs(shared):
    root = shared("data/neu_det")
    content = json.loads((root / "annotations" / "instances_val.json").read_text())
    names = {x["id"]: x["name"] for x in content["categories"]}
    truth = {x["image_id"]: names[x["category_id"]] for x in content["annotations"]}
    predictor = Predictor(
        ROOT / "configs/neu_det_r18.py", ROOT / "demo/neu_det_r18.safetensors", device="cpu"
    )
    chosen = content["images"][::15]  # 24 of all classes
    found = predictor.batch([root / "images" / "val" / image["file_name"] for image in chosen])
    order = sorted(names.values())
    right = sum(
        order[x.pred_classes[0]] == truth[image["id"]]
        for image, x in zip(chosen, found, strict=True)
    )
    assert right >= 18  # by chance 4


def test_a_bgr_array_a_tensor_and_a_float_tensor_give_the_same_as_the_file(predictor, surface_data):
    path = surface_data / "val" / "000001.jpg"
    rgb = to_rgb(path)
    expected = predictor(path).scores
    assert torch.equal(predictor(rgb[..., ::-1], channel_order="BGR").scores, expected)
    tensor = torch.from_numpy(rgb).permute(2, 0, 1)
    assert torch.equal(predictor(tensor).scores, expected) and torch.equal(
        predictor(tensor / 255).scores, expected
    )


def test_a_list_or_a_stack_of_images_gives_a_list(predictor):
    stack = torch.randint(0, 256, (3, 3, 64, 64), dtype=torch.uint8)
    one_by_one = [predictor(x).scores for x in stack]
    for batch in (stack, list(stack), stack.permute(0, 2, 3, 1).numpy()):
        for found, expected in zip(predictor(batch), one_by_one, strict=True):
            torch.testing.assert_close(found.scores, expected, rtol=1e-4, atol=1e-5)


def test_no_more_than_a_batch_is_computed_together(micro_config, surface_data):
    predictor = Predictor(micro_config, None, device="cpu", batch_size=2)
    infer = predictor._infer
    sizes = []

    def count_and_infer(inputs):
        sizes.append(len(inputs))
        return infer(inputs)

    predictor._infer = count_and_infer
    assert len(predictor.batch([np.zeros((20, 20, 3), np.uint8)] * 5)) == 5
    assert sizes == [2, 2, 1]


def test_half_precision_changes_little(micro_config, surface_data):
    torch.manual_seed(0)
    full = Predictor(micro_config, None, device="cpu")
    torch.manual_seed(0)
    half = Predictor(micro_config, None, device="cpu", dtype="bfloat16")
    path = surface_data / "val" / "000001.jpg"
    assert half(path).scores.dtype == torch.float32 and not torch.equal(
        half(path).scores, full(path).scores
    )
    torch.testing.assert_close(half(path).scores, full(path).scores, rtol=0, atol=0.02)


def test_threads_share_a_predictor(predictor):
    images = [
        np.random.default_rng(i).integers(0, 256, (40 + i, 64, 3), dtype=np.uint8) for i in range(8)
    ]
    expected = [next(predictor.stream([image])) for image in images]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda image: next(predictor.stream([image])), images))
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one.detections.scores, other.detections.scores)
        assert np.array_equal(one.salience, other.salience)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dtype": "int8"}, "dtype 'int8' is unknown"),
        ({"score_threshold": 1.5}, r"score_threshold is 1\.5"),
        ({"batch_size": 0}, "batch_size is 0"),
    ],
)
def test_settings_that_cannot_be_are_named(micro_config, surface_data, settings, message):
    with pytest.raises(ValueError, match=message):
        Predictor(micro_config, None, device="cpu", **settings)


def test_weights_of_another_number_of_classes_are_described(
    micro_config, surface_data, predictor, tmp_path
):
    save_file(predictor.model.state_dict(), tmp_path / "six.safetensors")
    with pytest.raises(CheckpointError, match=r"six\.safetensors.*class"):
        Predictor(
            micro_config,
            tmp_path / "six.safetensors",
            device="cpu",
            overrides=["model.num_classes=4"],
        )


def test_classes_have_the_names_of_the_checkpoint_where_the_data_is_not_there(
    micro_config, predictor, tmp_path
):
    names = ["a", "b", "c", "d", "e", "f"]
    torch.save(
        {"model": predictor.model.state_dict(), "class_names": names}, tmp_path / "named.pth"
    )
    elsewhere = ["dataloader.test.dataset.names=unknown_to_this_machine"]
    found = Predictor(micro_config, tmp_path / "named.pth", device="cpu", overrides=elsewhere)
    assert found.class_names == names


def test_images_of_other_sizes_in_a_list_change_nothing(predictor):
    # Padded to 64 x 96, 64 x 64, 64 x 96 and 96 x 64.
    sizes = [(64, 90), (64, 60), (60, 90), (90, 64)]
    images = [
        np.random.default_rng(i).integers(0, 256, (*size, 3), dtype=np.uint8)
        for i, size in enumerate(sizes)
    ]
    for found, image in zip(predictor.stream(images), images, strict=True):
        alone = next(predictor.stream([image]))
        torch.testing.assert_close(
            found.detections.scores, alone.detections.scores, rtol=1e-5, atol=1e-6
        )
        np.testing.assert_allclose(found.salience, alone.salience, atol=1e-5)


def test_a_config_of_another_detector_is_described():
    with pytest.raises(ConfigError, match="model is a RetinaNet, and only a SalienceDETR can"):
        Predictor(ROOT / "configs" / "neu_det_retinanet_r18.py", None, device="cpu")


@pytest.mark.parametrize("orientation", [1, 6])
def test_boxes_are_clipped_to_the_image_as_it_is_turned(predictor, tmp_path, orientation):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 90, 3), np.uint8))
    exif = image.getexif()
    exif[0x0112] = orientation
    image.save(tmp_path / "a.jpg", exif=exif)
    # Boxes of about the size of the image, around each token.
    for head in predictor.model.decoder.bbox_heads:
        nn.init.constant_(head.layers[-1].bias[2:], 4.0)

    found = predictor(tmp_path / "a.jpg")

    width, height = (90, 40) if orientation == 1 else (40, 90)
    boxes = found.pred_boxes.tensor
    assert found.image_size == (height, width) and len(found)
    assert boxes.min() == 0 and (boxes <= torch.tensor([width, height] * 2)).all()
    assert (boxes[:, 2] == width).any() and (boxes[:, 3] == height).any()
    for result in found.to_coco():
        x, y, box_width, box_height = result["bbox"]
        assert x >= 0 and y >= 0 and x + box_width <= width and y + box_height <= height
        assert box_width > 0 and box_height > 0


def test_a_processor_that_only_emulates_bfloat16_is_told(micro_config, monkeypatch, caplog):
    monkeypatch.setattr("salience_detr.utils.processor.computes_bfloat16", lambda: False)
    with caplog.at_level("WARNING"):
        Predictor(micro_config, None, device="cpu")
        assert not caplog.messages
        Predictor(micro_config, None, device="cpu", dtype="bfloat16")
    assert "only emulates bfloat16" in caplog.text


def test_a_dtype_may_be_pytorchs(micro_config, surface_data):
    assert (
        Predictor(micro_config, None, device="cpu", dtype=torch.bfloat16).autocast_dtype
        == torch.bfloat16
    )


@pytest.fixture
def named(micro_config, tmp_path):
    """Weights with the surface defects' names in another order, and their state dict."""
    state = instantiate(load_config(micro_config).model).state_dict()
    names = ("dent", "stain", "crack", "inclusion", "pit", "scratch")
    classes = ClassList(names, (60, 50, 40, 30, 20, 10))
    save_weights(state, tmp_path / "named.safetensors", classes=classes)
    return tmp_path / "named.safetensors", state, classes


def test_names_and_category_ids_of_the_weights_serve_where_the_data_is_not_there(
    micro_config, named, tmp_path, monkeypatch, caplog
):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "nowhere"))
    register_surface_defects()
    path, state, classes = named
    predictor = Predictor(micro_config, path, device="cpu")

    assert predictor.class_names == list(classes.names)
    assert predictor.classes.category_ids == classes.category_ids
    assert torch.equal(predictor.model.query_selection.class_head.bias, state[BIAS])
    image = np.zeros((64, 64, 3), np.uint8)
    found = predictor(image)
    ids = {x["category_id"] for x in found.to_coco()}
    assert ids <= set(classes.category_ids)
    assert not [x for x in caplog.records if x.levelno >= logging.WARNING]


def test_weights_are_put_into_the_order_of_the_data_at_hand(
    micro_config, surface_data, named, caplog
):
    path, state, _ = named
    predictor = Predictor(micro_config, path, device="cpu")

    assert predictor.class_names == ["scratch", "pit", "inclusion", "crack", "stain", "dent"]
    assert predictor.classes.category_ids == (1, 2, 3, 4, 5, 6)
    assert torch.equal(predictor.model.query_selection.class_head.bias, state[BIAS].flip(0))
    assert "put into the order of the data set" in caplog.text
    assert "other category ids than the data set (scratch: 10 there, 1 in" in caplog.text


def test_weights_that_lack_classes_of_the_data_at_hand_are_refused(
    micro_config, surface_data, predictor, tmp_path
):
    path = tmp_path / "a.safetensors"
    weld = ClassList(("weld", "pore", "pit", "d", "e", "f"), (1, 2, 3, 4, 5, 6))
    save_weights(predictor.model.state_dict(), path, classes=weld)
    with pytest.raises(CheckpointError, match=r"lacks 5 of .* 6 classes: scratch, incl"):
        Predictor(micro_config, path, device="cpu")

    found = Predictor(micro_config, path, device="cpu", ignore_class_names=True)
    assert found.class_names == list(weld.names)


def test_exported_models_have_the_classes_of_the_weights(
    micro_config, named, tmp_path, monkeypatch
):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "nowhere"))
    register_surface_defects()
    path, _, classes = named
    info = DetectorInfo.from_predictor(Predictor(micro_config, path, device="cpu"))
    read = DetectorInfo.from_json(info.to_json(), "model.onnx").classes
    assert (read.names, read.category_ids) == (classes.names, classes.category_ids)


@pytest.mark.parametrize(
    ("name", "classes"),
    [
        ("neu_det_r18", "crazing inclusion patches pitted_surface rolled-in_scale scratches"),
        ("surface_defects_tiny", "scratch pit inclusion crack stain dent"),
    ],
)
def test_the_shipped_weights_carry_names_and_category_ids(name, classes, tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "nowhere"))
    register_surface_defects()
    weights = ROOT / "demo" / f"{name}.safetensors"
    overrides = ["dataloader.test.dataset.names=not_at_hand_val"]
    if name == "neu_det_r18":
        overrides.append(f"dataloader.test.dataset.json_file={tmp_path / 'nowhere.json'}")
    config = ROOT / "configs" / f"{name}.py"
    predictor = Predictor(config, weights, device="cpu", overrides=overrides)
    assert predictor.class_names == classes.split()
    assert predictor.classes.category_ids == (1, 2, 3, 4, 5, 6)


def test_best_thresholds_are_those_of_the_weights(micro_config, surface_data, tmp_path):
    random = Predictor(micro_config, None, device="cpu")
    names = tuple(random.class_names)
    # In another order than the data set's.
    values = dict.fromkeys(reversed(names), 0.9) | {"dent": 0.0}
    best = ScoreThresholds(values, overall=0.5, iou_threshold=0.5, source="val.json")

    for name, thresholds in (("best.pth", best), ("none.safetensors", None)):
        classes = ClassList(names, tuple(random.classes.category_ids))
        state = random.model.state_dict()
        save_weights(state, tmp_path / name, classes=classes, thresholds=thresholds)

    options = {"device": "cpu", "score_threshold": "best"}
    predictor = Predictor(micro_config, tmp_path / "best.pth", **options)
    image = surface_data / "val" / "000001.jpg"
    everything = random(image)
    is_dent = everything.pred_classes == names.index("dent")
    assert torch.equal(predictor(image).scores, everything.scores[is_dent])
    assert DetectorInfo.from_predictor(predictor).thresholds == best

    command = r"store them: salience-detr analyze errors RESULTS\.json ANNOTATIONS\.json "
    with pytest.raises(ValueError, match=command + f"--save-thresholds {tmp_path}"):
        Predictor(micro_config, tmp_path / "none.safetensors", **options)
    with pytest.raises(ValueError, match="a model with random weights holds no best"):
        Predictor(micro_config, None, **options)

    # The remedy names the file that --save-thresholds takes, not the folder.
    (tmp_path / "run").mkdir()
    torch.save({"model": random.model.state_dict()}, tmp_path / "run" / "model_best.pth")
    with pytest.raises(ValueError, match=f"--save-thresholds {tmp_path}/run/model_best.pth"):
        Predictor(micro_config, tmp_path / "run", **options)


def test_a_class_may_have_a_threshold_of_its_own(predictor):
    thresholds = predictor.class_thresholds({"Pit": 0.7, "dent": 1})
    assert thresholds.tolist() == [0, 0.7, 0, 0, 0, 1]
    with pytest.raises(ValueError, match="the class 'weld' is unknown"):
        predictor.class_thresholds({"weld": 0.5})
    with pytest.raises(ValueError, match=r"score_threshold of 'pit' is -1; scores lie"):
        predictor.class_thresholds({"pit": -1})


def test_thresholds_of_other_classes_are_refused(predictor):
    best = ScoreThresholds({"pit": 0.5}, overall=0.5, iou_threshold=0.5, source="val.json")
    predictor.best_thresholds = best
    with pytest.raises(
        ValueError, match="lacks 5 of the 6 classes of the model: scratch, inclusion"
    ):
        predictor.class_thresholds("best")


@pytest.mark.parametrize(
    "content",
    [5, {}, {"classes": {}}, *(BEST_CONTENT | change for change in (
        {"overall": 2}, {"classes": {"pit": "high"}}, {"classes": [0.5]}, {"source": None},
        {"iou_threshold": float("nan")}, {"more": 1},
    ))],
)  # fmt: skip
def test_broken_thresholds_are_one_line(tmp_path, content):
    torch.save({"model": {}, "score_thresholds": content}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"a\.pth: .*; store them again$"):
        read_thresholds(tmp_path / "a.pth")
