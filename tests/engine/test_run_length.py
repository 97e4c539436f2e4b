"""Epochs, and the periods, the warm-up and the steps of the learning rate that follow from them."""

from __future__ import annotations

import pytest
from detectron2.config import instantiate

from salience_detr.cli import train as train_net
from salience_detr.config import ConfigError
from salience_detr.engine.run_length import fit_schedule

R50 = "configs/salience_detr_r50_4scale_12ep.py"


def configure(*words):
    return train_net.make_config(train_net.parse_args(["--config-file", *map(str, words)]))


def decays_at(config):
    """Return the iteration of the step to a tenth of the rate."""
    schedule = instantiate(config.lr_multiplier)
    max_iter = config.train.max_iter
    return next(i for i in range(max_iter // 2, max_iter) if schedule(i / max_iter) < 0.5)


@pytest.mark.parametrize(
    ("config", "num_images", "epochs", "period"),
    [
        # 37.5 iterations are an epoch; a share of 3 / 7 / 7 of the run would be 16.
        ("configs/surface_defects_tiny.py", 300, 3, 38),
        # Seven evaluations in 7 epochs, as in the config.
        ("configs/surface_defects_tiny.py", 400, 7, 50),
        # 11 in the config's 66 epochs: a share of 100 / 11 epochs of 37.5 iterations.
        ("configs/neu_det_r18.py", 300, 100, 341),
        # Less than an iteration each.
        (R50, 4, 12, 1),
    ],
)
def test_evaluations_and_checkpoints_come_once_an_epoch_at_most(config, num_images, epochs, period):
    config = configure(config)
    fit_schedule(config, num_images, epochs, ())

    assert config.train.eval_period == config.train.checkpointer.period == period


def test_evaluations_are_about_twenty_at_most():
    config = configure(R50, "train.eval_period=100")
    fit_schedule(config, 1600, 200, ())

    # 200 epochs of 100 iterations.
    assert config.train.max_iter == 20_000 and config.train.eval_period == 1000


def test_a_large_validation_set_is_evaluated_less_often():
    # 720 images, twice those of an evaluation, are 90 of 112 iterations: once, at the end.
    config = configure("configs/neu_det_r18.py")
    fit_schedule(config, 300, 3, (), num_test_images=360)
    assert config.train.eval_period == 112 and config.train.checkpointer.period == 38

    # A fifth of the images costs nothing.
    config = configure("configs/neu_det_r18.py")
    fit_schedule(config, 240, 3, (), num_test_images=60)
    assert config.train.eval_period == 30


def test_periods_that_the_user_sets_or_switches_off_stay():
    words = ["train.eval_period=7", "train.checkpointer.period=0"]
    config = configure(R50, *words, "--epochs", "1")
    assert (config.train.eval_period, config.train.checkpointer.period) == (7, 0)


def test_epochs_without_other_data_are_passes_over_the_data_of_the_config(
    surface_data, micro_config
):
    # The data set is at hand: 12 images in batches of 2.
    config = configure(micro_config, "--epochs", "5")
    assert config.train.max_iter == 30 and config.train.epochs == 5

    # In batches of 4.
    config = configure(micro_config, "--epochs", "5", "dataloader.train.total_batch_size=4")
    assert config.train.max_iter == 15


@pytest.mark.parametrize("words", [["--epochs", "3"], ["train.max_iter=22176"]])
def test_the_step_of_the_learning_rate_stays_at_its_part_of_the_run(words):
    # 10 of 12 epochs.
    config = configure(R50, *words)
    assert config.train.max_iter == 3 * 7392
    assert decays_at(config) == pytest.approx(3 * 7392 * 10 / 12, abs=1)


def test_a_schedule_that_the_user_sets_stays():
    config = configure(R50, "--epochs", "1", "lr_multiplier.scheduler.milestones=[44352]")
    assert decays_at(config) == pytest.approx(7392 / 2, abs=1)


def test_epochs_of_an_unknown_number_of_images_are_refused():
    config = configure(R50)
    config.train.epochs = None
    args = train_net.parse_args(["--config-file", R50, "--epochs", "3"])
    with pytest.raises(ConfigError, match=r"--epochs 3: .* set train\.max_iter"):
        train_net.use_own_data(config, args)


def test_an_evaluation_has_no_epochs(micro_config):
    config = configure(micro_config, "--eval-only", "--epochs", "3")
    assert config.train.max_iter == 6


@pytest.mark.parametrize("override", ["train.max_iter=7", "train.epochs=4"])
def test_two_lengths_of_a_run_contradict_each_other(override):
    with pytest.raises(ConfigError, match=f"--epochs 5 and {override} contradict each other"):
        configure(R50, "--epochs", "5", override)


def test_epochs_as_an_override_are_those_of_the_flag(surface_data, micro_config):
    assert configure(micro_config, "train.epochs=5").train.max_iter == 30

    # COCO is not at hand, and the override has replaced what its size would follow from.
    with pytest.raises(ConfigError, match=r"train\.epochs=5: the size of .* use --epochs 5"):
        configure(R50, "train.epochs=5")
