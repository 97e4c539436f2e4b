"""Configs and weights by their names."""

from __future__ import annotations

from pathlib import Path

import pytest

from salience_detr import model_zoo
from salience_detr.checkpoint import CheckpointError, read_checkpoint, read_classes
from salience_detr.checkpoint.origin import read_origin
from salience_detr.checkpoint.published import RELEASED, SHIPPED
from salience_detr.config import ConfigError, load_config
from salience_detr.model_zoo import ModelZooError

ROOT = Path(__file__).resolve().parents[2]


def test_all_recipes_have_a_name():
    names = model_zoo.list_models()
    assert names == sorted(path.stem for path in (ROOT / "configs").glob("*.py"))
    assert set(model_zoo.list_models(pretrained=True)) == {*SHIPPED, *RELEASED} <= set(names)


def test_a_config_by_its_name_is_that_of_its_file():
    path = ROOT / "configs" / "neu_det_r18.py"
    assert Path(model_zoo.get_config_file("neu_det_r18")) == path
    assert Path(model_zoo.get_config_file("neu_det_r18.py")) == path
    assert load_config("neu_det_r18") == load_config(path)

    config = model_zoo.get_config("neu_det_r18", trained=True)
    assert Path(config.train.init_checkpoint) == ROOT / "demo" / "neu_det_r18.safetensors"
    config.train.init_checkpoint = ""
    assert config == load_config(path) == model_zoo.get_config("neu_det_r18")


def test_urls_are_those_of_the_guide():
    guide = (ROOT / "docs" / "model_zoo.md").read_text()
    for name in RELEASED:
        row = next(row for row in guide.splitlines() if f"configs/{name}.py" in row)
        assert f"({model_zoo.get_checkpoint_url(name)})" in row


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("neu_det_r81", "did you mean neu_det_r18"),
        ("NEU_DET_R18", r"did you mean neu_det_r18\?"),
        ("x", "there are "),
        ("configs/neu_det_r18.yaml", r"did you mean neu_det_r18\?"),
        ("swin_l", r"did you mean salience_detr_swin_l_12ep\?"),
        ("yolo", "there are .*neu_det_r18, "),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest(name, hint):
    with pytest.raises(ModelZooError, match=hint):
        model_zoo.get_config_file(name)
    with pytest.raises(ConfigError, match=f"there is no config file {name}; {hint}"):
        load_config(name)


def test_a_model_without_weights_names_those_with():
    with pytest.raises(ModelZooError, match=r"no weights of .*convnext_t.*those of neu_det_r18, "):
        model_zoo.get_checkpoint_url("salience_detr_convnext_t_12ep")


def test_weights_by_their_name():
    assert read_classes("neu_det_r18").names[0] == "crazing"
    with pytest.raises(CheckpointError, match=r"no checkpoint file neu_det_r81; did you mean neu_"):
        read_classes("neu_det_r81")
    with pytest.raises(CheckpointError, match=r"no checkpoint file neu_det_r81\.pth$"):
        read_classes("neu_det_r81.pth")


@pytest.mark.parametrize(
    ("file", "read"), [("model.pth", read_checkpoint), ("model.safetensors", read_origin)]
)
def test_a_damaged_download_is_named_with_its_place(tmp_path, monkeypatch, file, read):
    placed = tmp_path / "huggingface/owner/name" / file
    placed.parent.mkdir(parents=True)
    placed.write_bytes(b"half")
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path))
    with pytest.raises(CheckpointError, match=f"delete {placed}, and get it again"):
        read(f"hf://owner/name/{file}")


@pytest.mark.parametrize("path", ["hf://owner/na:me?", "hf://owner/name/../../x.pth"])
def test_names_that_the_hub_cannot_have_are_refused(path):
    with pytest.raises(CheckpointError, match="is not of the form hf://owner/name"):
        read_checkpoint(path)
