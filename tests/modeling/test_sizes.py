"""Inputs on which the published implementation crashes."""

from __future__ import annotations

import copy

import pytest
import torch
from detectron2.config import instantiate

from salience_detr.config import load_config


def build(micro_config, *overrides):
    return instantiate(load_config(micro_config, overrides).model)


@pytest.mark.parametrize(
    "sizes",
    [
        [(32, 32)],
        [(1, 1)],
        [(33, 500)],
        [(700, 40)],
        [(2048, 2048)],
        [(64, 32), (32, 64), (97, 131)],
    ],
)
def test_any_image_size_is_detected_on(micro_config, make_input, sizes):
    model = build(micro_config).eval()
    with torch.no_grad():
        results = model([make_input(height, width, [], []) for height, width in sizes])

    for result, size in zip(results, sizes, strict=True):
        instances = result["instances"]
        assert instances.image_size == size
        assert 0 < len(instances) <= 300
        assert torch.isfinite(instances.pred_boxes.tensor).all()
        assert instances.scores.tolist() == sorted(instances.scores.tolist(), reverse=True)


@pytest.mark.parametrize("num_classes", [1, 1000])
@pytest.mark.parametrize("counts", [[0], [0, 0], [3, 0], [130, 1]])
def test_any_number_of_boxes_and_classes_trains_every_parameter(
    micro_config, make_input, num_classes, counts
):
    model = build(micro_config, f"model.num_classes={num_classes}").train()
    inputs = []
    for count in counts:
        corners = torch.rand(count, 2) * 30
        boxes = torch.cat([corners, corners + 1 + torch.rand(count, 2) * 20], dim=1)
        classes = torch.randint(num_classes, (count,))
        inputs.append(make_input(64, 48, boxes.tolist(), classes.tolist()))

    total = sum(model(inputs).values())
    total.backward()

    assert torch.isfinite(total)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert [name for name, p in trained.items() if p.grad is None] == []


def test_a_lone_tiny_image_trains(micro_config, make_input):
    model = build(micro_config, "model.backbone.freeze_at=5").train()
    total = sum(model([make_input(20, 20, [[2, 2, 9, 9]], [0])]).values())
    total.backward()
    assert torch.isfinite(total)


@pytest.mark.parametrize("size", [(32, 32), (1, 1), (17, 32)])
def test_a_lone_tiny_image_trains_batch_norm_of_the_backbone(micro_config, make_input, size):
    height, width = size
    model = build(micro_config).train()
    before = copy.deepcopy(model.backbone.state_dict())

    inputs = [make_input(height, width, [[0, 0, width, height]], [0])]
    total = sum(model(inputs).values())
    total.backward()

    assert torch.isfinite(total)
    assert model.compute_loss_normalizers(inputs).padded_size == (32, 64)
    for name, value in model.backbone.state_dict().items():
        assert torch.isfinite(value).all()
        if name.endswith("running_var"):
            assert not torch.equal(value, before[name])


def test_a_part_of_a_batch_may_be_a_lone_tiny_image(micro_config, make_input):
    model = build(micro_config).train()
    batch = [make_input(30, 32, [[2, 2, 9, 9]], [0]) for _ in range(2)]
    normalizers = model.compute_loss_normalizers(batch)
    for image in batch:
        assert torch.isfinite(sum(model([image], normalizers).values()))


@pytest.mark.parametrize(
    ("sizes", "freeze_at", "expected"),
    [
        ([(32, 32)], 5, (32, 32)),  # without BatchNorm
        ([(32, 33)], 0, (32, 64)),
        ([(33, 32)], 0, (64, 32)),
        ([(32, 32), (20, 20)], 0, (32, 32)),
    ],
)
def test_other_batches_are_padded_as_before(micro_config, make_input, sizes, freeze_at, expected):
    model = build(micro_config, f"model.backbone.freeze_at={freeze_at}").train()
    batch = [make_input(height, width, [[2, 2, 9, 9]], [0]) for height, width in sizes]
    assert model.compute_loss_normalizers(batch).padded_size == expected

    # In evaluation, BatchNorm needs no more than one value.
    assert model.eval().training_size((32, 32), 1) == (32, 32)


def test_maps_beyond_the_background_table_stretch_it(micro_config, make_input):
    model = build(micro_config, "model.encoder.background_embedding.size=5").eval()
    with torch.no_grad():
        result = model([make_input(64, 160, [], [])])
    assert len(result[0]["instances"]) > 0


def test_images_of_one_size_do_not_influence_each_other(micro_config, make_input):
    # 64 pixels give fewer tokens than queries, and NMS keeps a different number in each image.
    model = build(micro_config, "model.num_queries=200").eval().double()
    inputs = [make_input(64, 64, [], []) for _ in range(3)]
    with torch.no_grad():
        together = [x["instances"] for x in model(inputs)]
        alone = [model([x])[0]["instances"] for x in inputs]

    for a, b in zip(together, alone, strict=True):
        assert len(a) == len(b)
        torch.testing.assert_close(a.scores, b.scores)
        torch.testing.assert_close(a.pred_boxes.tensor, b.pred_boxes.tensor)


def test_losses_of_a_batch_are_those_of_its_images(micro_config, make_input):
    # Without shared statistics (BatchNorm frozen, as many boxes in each image), the loss of a batch
    # is the mean over its images.
    model = build(micro_config, "model.num_queries=200", "model.denoising.label_noise_prob=0")
    model = model.double().train()
    model.denoising.box_noise_scale = 0.0
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()
    model.feature_fusion.eval()

    inputs = [make_input(64, 64, [[5, 5, 30, 30]], [1]), make_input(64, 64, [[20, 9, 50, 40]], [0])]
    together = model(copy.deepcopy(inputs))
    alone = [model([copy.deepcopy(x)]) for x in inputs]

    for name in together:
        if name != "loss_salience":  # divided by the positive tokens of the batch
            torch.testing.assert_close(together[name], (alone[0][name] + alone[1][name]) / 2)


def test_half_precision_and_autocast_run(micro_config, make_input):
    model = build(micro_config).eval()
    inputs = [make_input(64, 64, [], [])]
    with torch.no_grad():
        expected = model(inputs)[0]["instances"].scores
        with torch.autocast("cpu", dtype=torch.bfloat16):
            mixed = model(inputs)[0]["instances"].scores
        half = model.to(torch.bfloat16)(inputs)[0]["instances"].scores

    torch.testing.assert_close(mixed.float(), expected, atol=0.03, rtol=0)
    torch.testing.assert_close(half.float(), expected, atol=0.03, rtol=0)


def test_a_compiled_model_detects_the_same(micro_config, make_input):
    model = build(micro_config).eval()
    inputs = [make_input(64, 64, [], [])]
    with torch.no_grad():
        expected = model(inputs)[0]["instances"]
        found = torch.compile(model, backend="eager")(inputs)[0]["instances"]

    torch.testing.assert_close(found.scores, expected.scores, atol=1e-5, rtol=1e-4)


def test_a_class_beyond_the_model_says_both_numbers(micro_config, make_input):
    model = build(micro_config, "model.num_classes=3").train()
    with pytest.raises(ValueError, match=r"class is 5.*has 3 classes.*model\.num_classes"):
        model([make_input(64, 64, [[1, 1, 9, 9]], [5])])
