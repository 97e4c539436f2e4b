"""The recipes: short, complete, and of the published sizes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from detectron2.config import instantiate

from salience_detr.config import load_config

ROOT = Path(__file__).resolve().parents[1]
RECIPES = sorted(path.stem for path in (ROOT / "configs").glob("*.py"))
PUBLISHED = {
    "r50_4scale_12ep": "r50_4scale",
    "r50_5scale_12ep": "r50_5scale",
    "convnext_l_12ep": "convnext_l",
    "swin_l_12ep": "swin_l",
    "focalnet_l_12ep": "focalnet_l",
}


def test_the_published_recipes_are_there():
    assert {f"salience_detr_{name}" for name in [*PUBLISHED, "r50_4scale_24ep"]} <= set(RECIPES)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_short_and_names_its_output(name):
    path = ROOT / "configs" / f"{name}.py"
    assert len(path.read_text().splitlines()) <= 45
    assert load_config(path).train.output_dir == f"./output/{name}"


@pytest.mark.parametrize("name", [name for name in RECIPES if name.startswith("salience_detr_")])
def test_a_recipe_for_coco_names_its_weights_and_takes_other_classes(name):
    path = ROOT / "configs" / f"{name}.py"
    config = load_config(path)

    assert config.train.init_checkpoint.startswith(("torchvision://", "https://"))
    assert load_config(path, ["model.num_classes=6"]).model.decoder.num_classes == 6


def test_the_long_schedule_decays_after_twenty_epochs():
    config = load_config(ROOT / "configs/salience_detr_r50_4scale_24ep.py")
    epoch = 118_287 // 16
    schedule = instantiate(config.lr_multiplier)

    assert config.train.max_iter == 24 * epoch and config.train.eval_period == epoch
    assert schedule((20 * epoch - 1) / config.train.max_iter) == 1.0
    assert schedule((20 * epoch + 1) / config.train.max_iter) == pytest.approx(0.1)


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_model_has_the_parameters_of_the_published_one(shared, name):
    manifest = shared(f"parity/{PUBLISHED[name]}_eval.json")
    shapes = json.loads(manifest.read_text())["parameters"]
    buffers = ("running_mean", "running_var", "num_batches_tracked")
    expected = sum(
        torch.Size(shape).numel()
        for parameter, shape in shapes.items()
        if not parameter.endswith(buffers) and ".enhance_mcsp." not in parameter  # a repetition
    )
    if name == "r50_4scale_12ep" or name == "r50_5scale_12ep":
        frozen = [
            p for p in shapes if p.startswith("backbone.") and (".bn" in p or ".downsample.1." in p)
        ]
        expected -= sum(
            torch.Size(shapes[p]).numel() for p in frozen if not p.endswith(buffers)
        )  # buffers in ours
    config = load_config(ROOT / f"configs/salience_detr_{name}.py", ["model.num_classes=91"])
    with torch.device(
        "cpu" if name.startswith("swin") else "meta"
    ):  # detectron2's needs numbers while it is built
        model = instantiate(config.model)

    assert sum(p.numel() for p in model.parameters()) == expected


def test_a_timm_model_is_one_override_away(micro_config):
    recipe = ROOT / "configs/salience_detr_convnext_t_12ep.py"
    config = load_config(
        recipe, ["model.backbone.name=efficientnet_b0", "model.backbone.drop_path_rate=0"]
    )
    with torch.device("meta"):
        model = instantiate(config.model)

    assert [conv.in_channels for conv in model.neck.projections] == [40, 112, 320]
