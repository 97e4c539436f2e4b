"""Flags that stand for keys of a config: --output, --lr, --image-size and others."""

from __future__ import annotations

import pytest
from omegaconf import OmegaConf

from salience_detr.cli.flags import benchmark, make_surface_defects
from salience_detr.cli.train import make_config, parse_args
from salience_detr.config import ConfigError, load_config
from salience_detr.data.image_size import set_image_size, set_test_size, walk_augmentations

TINY = "configs/surface_defects_tiny.py"


def config_of(*words: str, file: str = TINY):
    return make_config(parse_args(["--config-file", file, *words]))


def test_flags_set_keys():
    words = ["--output", "out", "--device", "cpu", "--lr", "0.01", "--seed", "7", "--weights", "W"]
    config = config_of(*words)
    assert config.train.output_dir == "out" and config.train.device == "cpu"
    assert config.optimizer.lr == 0.01 and config.train.seed == 7
    assert config.train.init_checkpoint == "W"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--lr 0.1 optimizer.lr=0.2", "--lr 0.1 and optimizer.lr=0.2 contradict each other"),
        ("--output a train.output_dir=b", "--output a and train.output_dir=b contradict"),
        (
            "--batch-size 2 dataloader.train.total_batch_size=4",
            "--batch-size 2 and dataloader.train.total_batch_size=4 contradict",
        ),
        (
            "--image-size 64 dataloader.test.mapper.augmentations.0.short_edge_length=32",
            "--image-size 64 and dataloader.test.mapper",
        ),
    ],
)
def test_a_flag_and_an_override_may_not_contradict_each_other(words, message):
    with pytest.raises(ConfigError, match=message):
        config_of(*words.split())


def test_a_flag_and_an_override_may_say_the_same():
    assert config_of("--lr", "0.2", "optimizer.lr=0.2").optimizer.lr == 0.2


def test_the_image_size_scales_all_sizes_and_nested_ones():
    config = load_config("configs/salience_detr_r50_4scale_12ep.py")
    assert "training are multiplied by 0.5" in set_image_size(config, 400)
    sizes = []
    for node in walk_augmentations(config.dataloader.train.mapper.augmentations):
        sizes.append((node.get("short_edge_length"), node.get("max_size"), node.get("crop_size")))

    # flip; random choice; its list; resize and crop in it; the resize of all images
    (crop,) = [size for size in sizes if size[2]]
    assert crop[2] == [192, 300]
    shorter, longer, _ = sizes[-1]
    assert (shorter[0], shorter[-1], longer) == (240, 400, 666)

    (test,) = config.dataloader.test.mapper.augmentations
    assert (test.short_edge_length, test.max_size) == (400, 666)


def test_the_windows_of_a_jitter_are_scaled_and_its_factors_stay():
    config = load_config("configs/neu_det_r18.py")
    set_image_size(config, 128)
    scale, crop = list(config.dataloader.train.mapper.augmentations)[-2:]
    assert (scale.target_height, scale.target_width) == (128, 128)
    assert (scale.min_scale, scale.max_scale) == (0.75, 1.4) and crop.crop_size == [128, 128]


def test_the_sizes_at_the_end_of_a_run_are_scaled_too():
    config = load_config("configs/finetune_small.py")
    set_image_size(config, 512)
    resize = config.dataloader.train.mapper.close_up_augmentations[-1]
    assert (resize.short_edge_length, resize.max_size) == ([448, 512, 576], 960)


def test_a_training_that_resizes_nothing_resizes_as_the_test(capsys):
    config = config_of("--image-size", "160")
    assert config.dataloader.train.mapper.augmentations[-1].short_edge_length == 160
    assert capsys.readouterr().out == (
        "--image-size 160: the shorter side is resized to 160, the longer side to at most 266, "
        "in the training too, which resized nothing\n"
    )


def test_a_config_that_resizes_nothing_says_what_to_change():
    mapper = {"augmentations": []}
    config = OmegaConf.create({"dataloader": {"test": {"mapper": mapper}}})
    with pytest.raises(ValueError, match="change dataloader"):
        set_test_size(config, 64)


def test_earlier_names_of_flags_are_taken_and_not_listed(capsys):
    assert benchmark.parse_args(["--batch-sizes", "1", "3"]).batch_sizes == [1, 3]
    assert benchmark.parse_args(["--batch-size", "2"]).batch_sizes == [2]
    assert benchmark.parse_args(["--image-size", "400"]).size == (400, 666)
    assert make_surface_defects.parse_args(["--size", "64"]).image_size == (64, 64)
    with pytest.raises(SystemExit):
        make_surface_defects.parse_args(["--help"])
    assert "--size " not in capsys.readouterr().out


def test_an_exported_model_keeps_its_size():
    from salience_detr.inference.loading import load_detector

    with pytest.raises(ConfigError, match="leave out --image-size 64"):
        load_detector(None, "model.onnx", image_size=64)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--lr", "inf"], "argument --lr: it is inf, and must be finite"),
        (["--lr", "0"], "argument --lr: it is 0, and must be at least 1e-12"),
        (["--seed", "-1"], "argument --seed: it is -1, and must be between 0 and 4294967295"),
    ],
)
def test_numbers_that_no_run_can_have_are_refused(capsys, words, message):
    with pytest.raises(SystemExit, match="2"):
        parse_args(["--config-file", TINY, *words])
    assert message in capsys.readouterr().err


def test_a_seed_in_the_config_is_checked_too():
    with pytest.raises(ConfigError, match=r"train\.seed is -1; it must be between 0 and"):
        load_config(TINY, ["train.seed=-1"])
