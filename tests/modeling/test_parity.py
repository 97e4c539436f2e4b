"""The published implementation's numbers, in float64: each stage, and all losses and gradients."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import LazyConfig, instantiate
from detectron2.structures import Boxes, Instances

from salience_detr.checkpoint import (
    convert_reference_checkpoint,
    load_state_dict_strictly,
    reference_conversion,
)
from salience_detr.modeling.postprocess import clip_detections, select_detections
from salience_detr.modeling.token_pyramid import flatten_maps
from salience_detr.visualization.capture import captured_calls

ROOT = Path(__file__).resolve().parents[2]
TOLERANCE = 1e-9  # of the largest value of each array
# Instances hold boxes in float32.
BOX_TOLERANCE = 1e-6
MEMORY = {"convnext_l": 6, "swin_l": 6, "focalnet_l": 6}  # GiB; the largest took 4.4


def load_case(folder: Path, name: str):
    spec = importlib.util.spec_from_file_location("parity", folder / "parity.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["parity"] = module
    spec.loader.exec_module(module)
    return module.Case(name)


@pytest.fixture(params=["cpu", pytest.param("gpu", marks=pytest.mark.gpu)])
def device(request):
    if request.param == "cpu":
        return torch.device("cpu")
    return request.getfixturevalue("gpu")


def build_model(case, config="salience_detr_r50_4scale_12ep", **denoising):
    config = LazyConfig.load(str(ROOT / f"configs/{config}.py"))
    config.model.num_classes = 91
    config.model.denoising.update(denoising)
    model = instantiate(config.model)
    source = {name: torch.from_numpy(value) for name, value in case.checkpoint().items()}
    state = convert_reference_checkpoint(source, category_ids=None)
    load_state_dict_strictly(model.double(), state, source=case.manifest["reference"]["config"])
    return model


def available_memory():
    """Return the free memory in GiB, or all memory where the system does not say what is free."""
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        fields = dict(line.split(":") for line in meminfo.read_text().splitlines())
        return int(fields["MemAvailable"].split()[0]) / 2**20
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30


def images(case):
    return [torch.from_numpy(image).permute(2, 0, 1) for image in case.images()]


def assert_close(found, expected, name, tolerance=TOLERANCE):
    found = np.asarray(found.detach().cpu() if isinstance(found, torch.Tensor) else found)
    assert found.shape == expected.shape, name
    error = np.abs(found - expected).max() / np.abs(expected).max()
    assert error < tolerance, f"{name}: {error:.2e}"


@pytest.mark.parametrize(
    "name",
    [
        "r50_4scale",
        "r50_5scale",
        pytest.param("convnext_l", marks=pytest.mark.slow),
        pytest.param("swin_l", marks=pytest.mark.slow),
        pytest.param("focalnet_l", marks=pytest.mark.slow),
    ],
)
def test_evaluation_equals_the_published_model_stage_by_stage(shared, device, name):
    if available_memory() < MEMORY.get(name, 0):
        pytest.skip(f"needs {MEMORY[name]} GiB of free memory")

    case = load_case(shared("parity"), f"{name}_eval")
    model = build_model(case, f"salience_detr_{name}_12ep").eval().to(device)
    # In training mode the decoder returns all its layers; it has no dropout or statistics.
    model.decoder.train()

    stages = (
        "backbone",
        "salience_filter",
        "encoder",
        "feature_fusion",
        "query_selection",
        "decoder",
    )
    captures = {name: captured_calls(model.get_submodule(name)) for name in stages}
    calls = {name: capture.__enter__() for name, capture in captures.items()}
    with torch.no_grad():
        detections = model([{"image": image} for image in images(case)])[0]["instances"]
    results = {name: [call.output for call in captured] for name, captured in calls.items()}
    for capture in captures.values():
        capture.__exit__(None, None, None)

    expected = case.expected
    for level, features in enumerate(results["backbone"][0].values()):
        step = max(1, features.shape[1] // 8)
        assert_close(
            features[0, ::step, ::5, ::5], expected[f"backbone_{level}"], f"backbone {level}"
        )

    selection = results["salience_filter"][0]
    for level, scores in enumerate(selection.score_maps):
        assert_close(scores, expected[f"salience_{level}"], f"salience {level}")
    assert selection.counts == expected["focus_token_nums"].tolist()
    layer_counts = [counts[0] for counts in selection.layer_counts]
    assert layer_counts == expected["encoder_layer_tokens"].tolist()
    assert selection.token_index[0].sort().values.tolist() == expected["selected_tokens"].tolist()

    tokens = expected["token_index"]
    assert_close(results["encoder"][0][0, tokens], expected["encoder_output"], "encoder output")
    memory = flatten_maps(results["feature_fusion"][0])
    assert_close(memory[0, tokens], expected["memory"], "memory")

    proposals = results["query_selection"][0]
    assert proposals.token_index[0].tolist() == expected["query_tokens"].tolist()
    assert_close(proposals.pred_boxes[0], expected["proposal_boxes"], "proposal boxes")

    predictions = results["decoder"][0]
    first_boxes = predictions.pred_boxes[0, 0]
    assert_close(first_boxes, expected["pred_boxes_layer0"], "boxes of the first layer")
    assert_close(predictions.pred_logits[-1, 0], expected["pred_logits"], "logits")
    assert_close(predictions.pred_boxes[-1, 0], expected["pred_boxes"], "boxes")

    # The published model does not clip its boxes.
    selected = select_detections(
        predictions.pred_logits[-1, 0], predictions.pred_boxes[-1, 0], detections.image_size
    )
    assert selected.pred_classes.tolist() == expected["labels"].tolist()
    assert_close(selected.scores, expected["scores"], "scores")
    assert_close(selected.pred_boxes.tensor, expected["boxes"], "absolute boxes", BOX_TOLERANCE)

    clipped = clip_detections(selected)
    assert torch.equal(detections.pred_boxes.tensor, clipped.pred_boxes.tensor)
    assert torch.equal(detections.scores, clipped.scores)


def test_training_losses_and_gradients_equal_the_published_model(shared, device):
    case = load_case(shared("parity"), "r50_4scale_train")
    model = build_model(case, label_noise_prob=0.0, box_noise_scale=0.0)
    model.train().to(device)

    inputs = training_inputs(case)
    losses = model(inputs)
    total = sum(losses.values())
    total.backward()

    parameters = dict(model.named_parameters())
    renames = reference_conversion.reference_renames(case.checkpoint())
    names = {rename.theirs: rename.ours for rename in renames}
    gradients = {name: p.grad.norm() for name, p in parameters.items() if p.requires_grad}
    total_norm = torch.stack(list(gradients.values())).norm()

    found = dict(losses, total_loss=total, total_grad_norm=total_norm)
    for key in case.expected:
        if key.startswith("grad_norm:"):
            reference = key.removeprefix("grad_norm:").replace(
                "encoder.enhance_mcsp", "encoder_class_head"
            )
            found[key] = gradients[names[reference]]

    assert set(losses) == {key for key in case.expected if key.startswith("loss_")}
    for key, expected in case.expected.items():
        assert_close(found[key], expected, key)


@pytest.mark.gpu
def test_float32_finds_what_the_published_model_finds(shared, gpu):
    case = load_case(shared("parity"), "r50_4scale_eval")
    model = build_model(case).eval().float().to(gpu)
    with torch.no_grad(), captured_calls(model.salience_filter) as calls:
        detections = model([{"image": image.float()} for image in images(case)])[0]["instances"]

    expected = case.expected
    for level, scores in enumerate(calls[0].output.score_maps):
        assert_close(scores, expected[f"salience_{level}"], f"salience {level}", 1e-3)

    # Rounding changes the order of detections whose scores are nearly equal.
    found = {}
    for box, score, label in zip(
        detections.pred_boxes.tensor.tolist(),
        detections.scores.tolist(),
        detections.pred_classes.tolist(),
        strict=True,
    ):
        found.setdefault(label, []).append((box, score))
    height, width = detections.image_size
    limits = np.array([width, height, width, height])
    missing = 0
    for box, score, label in zip(
        expected["boxes"], expected["scores"], expected["labels"].tolist(), strict=True
    ):
        clipped = np.clip(box, 0, limits)
        missing += not any(
            abs(score - other_score) < 1e-3 and np.abs(clipped - other).max() < 0.5
            for other, other_score in found.get(label, ())
        )
    assert missing <= 0.02 * len(expected["scores"])


@pytest.mark.gpu
def test_float32_has_the_losses_of_the_published_model(shared, gpu):
    case = load_case(shared("parity"), "r50_4scale_train")
    model = build_model(case, label_noise_prob=0.0, box_noise_scale=0.0)
    losses = model.float().train().to(gpu)(training_inputs(case))
    total = sum(losses.values()).item()
    assert total == pytest.approx(float(case.expected["total_loss"]), rel=1e-3)


def training_inputs(case):
    """Return the images of a case with their boxes in float64."""
    inputs = []
    for image, target in zip(images(case), case.targets(), strict=True):
        instances = Instances(tuple(image.shape[1:]))
        instances.gt_boxes = Boxes(torch.zeros(0, 4))
        instances.gt_boxes.tensor = torch.from_numpy(target["boxes"])  # kept in float64
        instances.gt_classes = torch.from_numpy(target["labels"])
        inputs.append({"image": image, "instances": instances})
    return inputs
