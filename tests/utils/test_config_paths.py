"""Relative paths in configs."""

from __future__ import annotations

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from salience_detr.config import load_config
from salience_detr.engine.train import save_config
from salience_detr.utils.config_paths import make_paths_absolute

CONFIG = Path(__file__).parents[2] / "configs" / "neu_det_r18.py"


@pytest.mark.parametrize(
    "path", ["", "https://a/b.pth", "detectron2://x", "hf://owner/name", "/a/b", "surface_defects"]
)
def test_other_names_are_left_alone(path, tmp_path):
    config = OmegaConf.create({"train": {"init_checkpoint": path}, "names": "neu_det_val"})
    make_paths_absolute(config, [tmp_path], must_exist=False)
    assert config.train.init_checkpoint == path and config.names == "neu_det_val"


def test_a_saved_config_is_used_from_any_folder(tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "data.json").touch()
    (tmp_path / "w.pth").touch()
    monkeypatch.chdir(tmp_path)

    config = load_config(CONFIG, ["train.output_dir=out", "train.init_checkpoint=w.pth"])
    for loader in (config.dataloader.train, config.dataloader.test):
        loader.dataset.update(names="data.json", json_file="data.json", image_root="images")
    Path("out").mkdir()
    save_config(config)
    assert config.train.output_dir == "out"  # in messages of the run it stays

    monkeypatch.chdir("elsewhere")
    saved = load_config("../out/config.yaml")
    dataset = saved.dataloader.test.dataset
    assert saved.train.output_dir == str(tmp_path / "out")
    assert saved.train.init_checkpoint == str(tmp_path / "w.pth")
    assert dataset.names == dataset.json_file == str(tmp_path / "data.json")
    assert dataset.image_root == str(tmp_path / "images")
    assert saved.dataloader.evaluator.dataset_name == str(tmp_path / "data.json")


def test_relative_paths_of_an_earlier_version_are_found_from_the_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("out").mkdir()
    config = load_config(CONFIG, ["train.output_dir=out"])
    save_config(config)
    text = Path("out/config.yaml").read_text().replace(str(tmp_path / "out"), "./out")
    Path("out/config.yaml").write_text(text)

    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    assert load_config("../out/config.yaml").train.output_dir == str(tmp_path / "out")
    # An override is relative to the folder of whoever writes it.
    given = load_config("../out/config.yaml", ["train.output_dir=here"])
    assert given.train.output_dir == "here"
