"""Annotations are drawn where they are, and the training loader's images as it yields them."""

from __future__ import annotations

import json

import numpy as np
import pytest
from detectron2.config import instantiate

from salience_detr.cli.visualize_data import main
from salience_detr.config import load_config
from salience_detr.data import batches, read_image


def test_annotations_are_drawn_as_they_are(surface_data, micro_config, tmp_path, capsys):
    assert (
        main(
            [
                "--config-file",
                micro_config,
                "--output",
                str(tmp_path),
                "--split",
                "val",
                "--count",
                "3",
            ]
        )
        == 0
    )
    content = json.loads((surface_data / "annotations" / "val.json").read_text())
    drawn = sorted(tmp_path.glob("*.jpg"))
    assert len(drawn) == 3
    path = drawn[0]
    image = next(x for x in content["images"] if x["file_name"] == path.name)
    changed = (
        np.abs(
            read_image(str(path)).astype(int) - read_image(str(surface_data / "val" / path.name))
        ).sum(-1)
        > 60
    )
    for annotation in (x for x in content["annotations"] if x["image_id"] == image["id"]):
        x, y, w, h = (round(value) for value in annotation["bbox"])
        # At least half of the lower side, which no label covers.
        side = changed[min(63, y + h - 1) : y + h + 2, x : x + w]
        assert side.any(axis=0).mean() > 0.5


def test_the_loaders_images_are_those_of_the_first_iterations(surface_data, micro_config, tmp_path):
    words = [
        "--config-file",
        micro_config,
        "--output",
        str(tmp_path),
        "--augmented",
        "--count",
        "5",
    ]
    assert main(words) == 0
    stream = batches(instantiate(load_config(micro_config).dataloader.train), 0)
    expected = [
        f"{i:04d}_{x['file_name'].rsplit('/', 1)[1]}" for i in range(3) for x in next(stream)
    ][:5]
    assert sorted(path.name for path in tmp_path.glob("*.jpg")) == sorted(expected)


def test_what_does_not_go_together_is_said(micro_config, tmp_path, capsys):
    words = ["--config-file", micro_config, "--output", str(tmp_path)]
    with pytest.raises(SystemExit):
        main([*words, "--augmented", "--split", "val"])
    assert main([*words, "--data-dir", "nowhere"]) == 2
    assert "there is no data folder nowhere" in capsys.readouterr().err


def test_an_output_that_cannot_be_written_is_said_before_the_data_are_read(
    micro_config, tmp_path, capsys
):
    (tmp_path / "file").touch()
    words = ["--config-file", micro_config, "--data-dir", "nowhere"]
    assert main([*words, "--output", str(tmp_path / "file")]) == 2
    assert "file cannot be written to" in capsys.readouterr().err


def test_images_of_the_same_name_are_all_drawn_and_training_data_are_enough(
    surface_data, micro_config, tmp_path
):
    content = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "pit"}]}
    for i, folder in enumerate(("one", "two"), 1):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.jpg").write_bytes(
            (surface_data / "val" / "000001.jpg").read_bytes()
        )
        content["images"].append(
            {"id": i, "file_name": f"{folder}/x.jpg", "width": 64, "height": 64}
        )
    (tmp_path / "train.json").write_text(json.dumps(content))
    words = ["--train-json", str(tmp_path / "train.json"), "--train-images", str(tmp_path)]
    assert main(["--config-file", micro_config, "--output", str(tmp_path / "drawn"), *words]) == 0
    assert sorted(path.name for path in (tmp_path / "drawn").iterdir()) == ["x.jpg", "x_2.jpg"]


def test_a_broken_image_is_one_line_from_a_worker_too(surface_data, micro_config, tmp_path, capsys):
    (tmp_path / "x.jpg").write_bytes(b"no image")
    content = {
        "images": [{"id": 1, "file_name": "x.jpg", "width": 64, "height": 64}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [5, 5, 20, 20]}],
        "categories": [{"id": 1, "name": "pit"}],
    }
    (tmp_path / "train.json").write_text(json.dumps(content))
    words = ["--train-json", str(tmp_path / "train.json"), "--train-images", str(tmp_path)]
    words += ["--config-file", micro_config, "--augmented", "dataloader.train.num_workers=1"]
    words += ["--output", str(tmp_path / "drawn")]

    assert main(words) == 2
    (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error:")]
    assert line.startswith("error: cannot read the image") and "x.jpg" in line


def test_a_preset_is_drawn_as_the_training_sees_it(surface_data, micro_config, tmp_path):
    words = ["--config-file", micro_config, "--output", str(tmp_path), "--count", "2"]
    assert main([*words, "--augmentation", "mosaic_mixup"]) == 0
    assert len(list(tmp_path.glob("0000_*.jpg"))) == 2
    with pytest.raises(SystemExit):
        main([*words, "--augmentation", "ssd", "--split", "val"])
