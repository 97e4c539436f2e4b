"""One annotation file is enough: a part of it is drawn for validation."""

from __future__ import annotations

import json
import shutil

import pytest

from salience_detr.cli import train as train_net
from salience_detr.cli.convert_dataset import main as convert_main
from salience_detr.config import ConfigError
from salience_detr.data.coco_format import DatasetError


@pytest.fixture
def one_file(surface_root, tmp_path):
    """Make a folder of 12 generated images with CVAT's instances_default.json."""
    root = tmp_path / "one"
    source = surface_root / "surface_defects"
    shutil.copytree(source / "train", root / "images" / "default")
    (root / "annotations").mkdir()
    shutil.copy(
        source / "annotations" / "train.json", root / "annotations" / "instances_default.json"
    )
    return root


def configure(*words):
    return train_net.make_config(train_net.parse_args(["--config-file", *map(str, words)]))


def parts_of(config):
    contents = []
    for loader in (config.dataloader.train, config.dataloader.test):
        with open(loader.dataset.json_file) as file:
            contents.append(json.load(file))
    return contents


def names_of(content):
    return {image["file_name"] for image in content["images"]}


def test_the_draw_is_written_below_the_output_folder_and_stays(
    one_file, micro_config, tmp_path, capsys
):
    output = tmp_path / "run"
    words = (micro_config, "--data-dir", one_file, "--val-fraction", 0.25)
    config = configure(*words, f"train.output_dir={output}")
    train, val = parts_of(config)

    assert [len(train["images"]), len(val["images"])] == [9, 3]
    assert not names_of(train) & names_of(val)
    assert config.dataloader.test.dataset.json_file == str(output / "split" / "val.json")
    assert config.dataloader.test.dataset.image_root == str(one_file / "images" / "default")
    assert "was split: 9 images for training and 3 images for validation" in capsys.readouterr().out

    # The same when resumed, in another folder, and from single flags.
    status = (output / "split" / "val.json").stat()
    for flag in ("--resume", "--eval-only"):
        assert parts_of(configure(*words, flag, f"train.output_dir={output}")) == [train, val]
    assert (output / "split" / "val.json").stat().st_mtime_ns == status.st_mtime_ns

    single = (
        "--train-json", one_file / "annotations" / "instances_default.json",
        "--train-images", one_file / "images" / "default", "--val-fraction", 0.25,
    )  # fmt: skip
    other = configure(micro_config, *single, f"train.output_dir={tmp_path / 'other'}")
    assert parts_of(other) == [train, val]


def test_another_split_does_not_replace_that_of_a_run(one_file, micro_config, tmp_path):
    words = (micro_config, "--data-dir", one_file, f"train.output_dir={tmp_path / 'run'}")
    before = parts_of(configure(*words, "--val-fraction", 0.25))
    for flag in ("--resume", "--eval-only"):
        with pytest.raises(
            ConfigError, match=r"train\.json is another split than --val-fraction 0"
        ):
            configure(*words, "--val-fraction", 0.5, flag)
    assert parts_of(configure(*words, "--val-fraction", 0.25, "--resume")) == before

    # A new run may.
    assert parts_of(configure(*words, "--val-fraction", 0.5)) != before


def test_a_run_on_one_file_trains_resumes_and_evaluates(one_file, micro_config, tmp_path):
    output = tmp_path / "run"
    words = [
        "--config-file", micro_config, "--data-dir", str(one_file), "--val-fraction", "0.25",
        f"train.output_dir={output}",
    ]  # fmt: skip
    assert train_net.run([*words, "--epochs", "0.5"]) == 0
    assert train_net.run([*words, "--epochs", "1", "--resume"]) == 0
    weights = str(output / "model_final.pth")
    assert train_net.run([*words, "--eval-only", "--weights", weights]) == 0
    saved = ["--config-file", str(output / "config.yaml"), "--eval-only", "--weights", weights]
    assert train_net.run(saved) == 0


def test_training_and_conversion_draw_the_same(one_file, micro_config, tmp_path):
    flags = ("--val-fraction", "0.25", "--split-by", r"(\d)\.")
    config = configure(
        micro_config, "--data-dir", one_file, *flags, f"train.output_dir={tmp_path / 'run'}"
    )
    output = tmp_path / "converted"
    for words in (
        (one_file,),
        (one_file / "annotations" / "instances_default.json", one_file / "images" / "default"),
    ):
        command = ["coco", *map(str, words), "--output", str(output), *flags, "--overwrite"]
        assert convert_main(command) == 0
        for name, content in zip(("train", "val"), parts_of(config), strict=True):
            path = output / "annotations" / f"instances_{name}.json"
            assert json.loads(path.read_text()) == content


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--data-dir", "DIR"], "no val data: .* or --val-fraction 0.2 to split .*default.json"),
        (["--val-fraction", "0.2"], "--val-fraction splits the training data: add --data-dir"),
        (["--data-dir", "DIR", "--split-by", "(a)"], "goes with --val-fraction: add it"),
        (["--data-dir", "DIR", "--val-fraction", "1"], "--val-fraction is 1; it lies between"),
        (["--data-dir", "DIR", "--val-fraction", "0.01"], "leaves none for validation"),
        (
            ["--data-dir", "DIR", "--val-fraction", "0.2", "--split-by", "["],
            "no regular expression",
        ),
        (
            [
                "--data-dir",
                "DIR",
                "--val-fraction",
                "0.2",
                "--val-json",
                "DIR/x",
                "--val-images",
                "DIR",
            ],
            "x is there for validation: leave one of the two out",
        ),
    ],
)
def test_flags_that_do_not_fit_are_one_line(one_file, micro_config, tmp_path, words, message):
    words = [word.replace("DIR", str(one_file)) for word in words]
    with pytest.raises((ConfigError, DatasetError), match=message):
        configure(micro_config, *words, f"train.output_dir={tmp_path / 'run'}")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["one"], "is in COCO's format: add --val-fraction 0.2 to split it"),
        (["one/annotations/instances_default.json"], "name the folder of the images"),
        (["one/annotations/instances_default.json", "gone"], "there is no folder of images gone"),
        (
            ["one/annotations/instances_default.json", "one/annotations", "--val-fraction", "0.2"],
            "none of the 12 images",
        ),
    ],
)
def test_conversions_of_coco_files_that_cannot_be_are_one_line(
    one_file, tmp_path, monkeypatch, capsys, words, message
):
    monkeypatch.chdir(tmp_path)
    assert convert_main(["coco", *words, "--output", "out"]) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "out").exists()
