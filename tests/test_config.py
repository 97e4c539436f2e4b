"""Overrides: typed values in, typos out."""

from __future__ import annotations

import pytest
from detectron2.config import LazyConfig

from salience_detr.config import ConfigError, load_config


def test_overrides_change_typed_values(micro_config):
    config = load_config(
        micro_config, ["model.num_classes=3", "optimizer.lr=1e-3", "train.output_dir=out"]
    )
    assert (
        config.model.num_classes == 3
        and config.optimizer.lr == 1e-3
        and config.train.output_dir == "out"
    )


@pytest.mark.parametrize("classes", [1, 17])
def test_one_override_changes_the_number_of_classes_everywhere(micro_config, classes):
    model = load_config(micro_config, [f"model.num_classes={classes}", "model.num_queries=7"]).model
    assert model.query_selection.class_head.num_classes == model.decoder.num_classes == classes
    assert model.denoising.num_classes == classes
    assert model.query_selection.num_queries == model.denoising.num_queries == 7


@pytest.mark.parametrize(
    ("typo", "meant"),
    [
        ("modle.num_classes=3", "model.num_classes"),
        ("train.max_itr=3", "train.max_iter"),
        ("optimizer.learning_rate=1", "optimizer.lr"),
        ("model.encoder.layers.0.fnn_dim=8", "model.encoder.layers.0.ffn_dim"),
        ("num_queries=3", "model.num_queries"),
    ],
)
def test_a_typo_is_an_error_that_names_the_nearest_key(micro_config, typo, meant):
    with pytest.raises(ConfigError) as error:
        load_config(micro_config, [typo])
    assert repr(typo.split("=")[0]) in str(error.value)
    if typo != "optimizer.learning_rate=1":
        assert meant in str(error.value)


def test_arguments_that_the_config_does_not_state_can_be_set(micro_config):
    assert load_config(micro_config, ["model.max_detections=10"]).model.max_detections == 10
    with pytest.raises(ConfigError, match="max_detection'"):
        load_config(micro_config, ["model.max_detection=10"])


def test_a_plus_adds_a_key(micro_config):
    assert load_config(micro_config, ["+train.note=hello"]).train.note == "hello"


@pytest.mark.parametrize("word", ["train.max_iter", "=3", "train.max_iter=[1"])
def test_words_that_are_no_overrides_are_named(micro_config, word):
    with pytest.raises(ConfigError) as error:
        load_config(micro_config, [word])
    assert repr(word) in str(error.value)


def test_a_missing_config_file_is_named():
    with pytest.raises(ConfigError, match=r"no config file configs/nothing\.py"):
        load_config("configs/nothing.py")


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        (
            "salience_detr.modeling.neck.ChannelMapper",
            "salience_detr.modeling.necks.ChannelMapper",
            r"model\.neck: there is no salience_detr\.modeling\.necks\.ChannelMapper",
        ),
        (
            "num_groups: 4",
            "num_clusters: 4",
            r"model\.neck: salience_detr\.modeling\.neck\.ChannelMapper takes no num_clusters",
        ),
    ],
)
def test_a_saved_config_of_an_earlier_version_is_one_line(
    micro_config, tmp_path, before, after, message
):
    saved = tmp_path / "config.yaml"
    LazyConfig.save(load_config(micro_config), str(saved))

    assert load_config(saved).model.embed_dim == 32

    content = saved.read_text()
    assert before in content

    saved.write_text(content.replace(before, after))
    with pytest.raises(ConfigError, match=message + r"; if an earlier version wrote the file, use"):
        load_config(saved)


@pytest.mark.parametrize(
    "override", ["train.max_iter=abc", "train.amp=true", "train.output_dir=5", "optimizer.lr=fast"]
)
def test_an_override_of_another_type_is_an_error(micro_config, override):
    with pytest.raises(ConfigError, match=f"the override '{override}' sets a "):
        load_config(micro_config, [override])


@pytest.mark.parametrize(
    "override", ["optimizer.lr=1", "dataloader.evaluator.output_dir=null", "train.wandb.name=run"]
)
def test_integers_for_floats_and_null_are_no_other_type(micro_config, override):
    load_config(micro_config, [override])
