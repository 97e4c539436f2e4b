"""Overrides: typed values in, typos out."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from detectron2.config import LazyConfig

from salience_detr.config import (
    ConfigError,
    load_config,
    resolve_amp,
    resolve_device,
    set_matmul_precision,
    to_yaml,
)

ROOT = Path(__file__).resolve().parents[1]


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
    ("override", "wanted"),
    [
        ("train.max_iter=abc", "a whole number, such as 6"),
        ("train.max_iter=true", "a whole number"),
        ("train.max_iter=null", "a whole number"),
        ("train.amp=true", "a group of settings: set train.amp.enabled=True"),
        ("train.ema=true", "a group of settings: set train.ema.enabled=True"),
        ("train.checkpointer=5", "a group of settings: set train.checkpointer.period=..."),
        ("train.ema.enabled=1", "true or false"),
        ("train.ema.enabled=null", "true or false"),
        ("optimizer.lr=fast", "a number, such as 0.0004"),
        ("optimizer.betas=0.9", r"a list: set optimizer.betas=\[...\]"),
        ("train.output_dir=5", "a text, such as ./output"),
        ("train.output_dir=null", "a text"),
        ("train.best_metric=null", "a text, such as bbox/AP"),
        ("train.device=null", "a text, such as auto"),
    ],
)
def test_an_override_of_another_kind_is_an_error_with_the_kind(micro_config, override, wanted):
    key = override.partition("=")[0]
    message = f"the override '{override}' does not fit: {key} is {wanted}"
    with pytest.raises(ConfigError, match=message):
        load_config(micro_config, [override])


def test_what_is_off_by_default_can_be_switched_off(micro_config):
    overrides = ["model.nms_iou_threshold=0.7", "model.nms_iou_threshold=null"]
    assert load_config(micro_config, overrides).model.nms_iou_threshold is None


@pytest.mark.parametrize("value", ["5", "1e3", "007", "true"])
def test_a_number_is_a_free_text(micro_config, value):
    assert load_config(micro_config, [f"train.wandb.project={value}"]).train.wandb.project == value


@pytest.mark.parametrize("dtype", ["bf16", "bfloat16"])
def test_dtypes_have_torchs_names_and_short_ones(micro_config, dtype):
    words = ["train.amp.enabled=True", f"train.amp.dtype={dtype}"]
    amp = load_config(micro_config, words).train.amp
    assert resolve_amp(amp, torch.device("cpu")) == torch.bfloat16


@pytest.mark.parametrize(("has_bfloat16", "expected"), [(True, torch.bfloat16), (False, None)])
def test_processors_that_only_emulate_bf16_stay_with_float32(
    micro_config, monkeypatch, has_bfloat16, expected
):
    monkeypatch.setattr("salience_detr.config.computes_bfloat16", lambda: has_bfloat16)
    amp = load_config(micro_config, ["train.amp.enabled=True"]).train.amp
    assert resolve_amp(amp, torch.device("cpu")) == expected


@pytest.mark.parametrize(
    ("capability", "expected"),
    [((7, 0), torch.float16), ((7, 5), torch.float16), ((8, 0), torch.bfloat16)],
)
def test_gpus_that_only_emulate_bf16_take_fp16(micro_config, monkeypatch, capability, expected):
    properties = SimpleNamespace(major=capability[0], minor=capability[1])
    monkeypatch.setattr(torch.version, "cuda", "12.4")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    # With emulation every GPU can make a bfloat16 tensor.
    monkeypatch.setattr(torch.cuda, "_check_bf16_tensor_supported", lambda device: True)
    amp = load_config(micro_config, ["train.amp.enabled=True"]).train.amp
    assert resolve_amp(amp, torch.device("cuda")) == expected


def test_the_precision_of_matrix_products_is_one_of_pytorchs(micro_config, monkeypatch):
    chosen = []
    monkeypatch.setattr(torch, "set_float32_matmul_precision", chosen.append)
    for words in ([], ["train.matmul_precision=high"]):
        set_matmul_precision(load_config(micro_config, words))
    assert chosen == ["highest", "high"]

    for value in ("tf32", "true", "null", "1"):
        message = r"train\.matmul_precision is .*; use one of highest, high, medium"
        with pytest.raises(ConfigError, match=message):
            load_config(micro_config, [f"train.matmul_precision={value}"])


def test_a_config_of_an_earlier_version_has_the_highest_precision(micro_config, monkeypatch):
    chosen = []
    monkeypatch.setattr(torch, "set_float32_matmul_precision", chosen.append)
    config = load_config(micro_config)
    del config.train.matmul_precision
    set_matmul_precision(config)
    assert chosen == ["highest"]


@pytest.mark.parametrize(
    "override", ["optimizer.lr=1", "dataloader.evaluator.output_dir=null", "train.wandb.name=run"]
)
def test_integers_for_floats_and_null_are_no_other_type(micro_config, override):
    load_config(micro_config, [override])


@pytest.fixture
def saved(micro_config, tmp_path):
    """Write a run's config.yaml and return a function that loads it with changes in its text."""
    path = tmp_path / "config.yaml"
    LazyConfig.save(load_config(micro_config), str(path))
    content = path.read_text()

    def load(before="", after="", overrides=(), **options):
        assert before in content
        path.write_text(content.replace(before, after) if before else content + after)
        return load_config(path, overrides, **options)

    return load


@pytest.mark.parametrize("recipe", sorted(Path(ROOT, "configs").glob("*.py")), ids=lambda x: x.stem)
def test_the_config_that_a_run_writes_is_data(recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a checkout may have outputs, whose paths would become absolute
    config = load_config(recipe)
    LazyConfig.save(config, str(tmp_path / "config.yaml"))
    assert (tmp_path / "config.yaml").read_text() == to_yaml(config)
    assert load_config(tmp_path / "config.yaml") == LazyConfig.load(str(tmp_path / "config.yaml"))


def test_a_yaml_config_calls_only_known_packages(saved):
    target = "salience_detr.modeling.neck.ChannelMapper"
    with pytest.raises(ConfigError, match=r"model\.neck\._target_: .*os\.system; .*--trust-config"):
        saved(target, "os.system")


def test_an_override_of_a_yaml_config_calls_only_known_packages(saved):
    for override in ("model.neck._target_=os.system", "+train.x={_target_: os.system}"):
        with pytest.raises(ConfigError, match=r"os\.system; .*--trust-config"):
            saved(overrides=[override])


def test_a_trusted_yaml_config_calls_anything(saved, tmp_path):
    after = f"note: !!python/object/apply:pathlib.Path [{tmp_path}]\n"
    with pytest.raises(ConfigError, match=r"may not hold !!python/object/apply:pathlib\.Path;"):
        saved(after=after)
    assert saved(after=after, trust=True).note == tmp_path


def test_a_yaml_config_that_is_no_config_is_one_line(saved, tmp_path):
    for content in ("", "- 1\n", "a: [", "\x00", "[" * 5000, "a: &a [*a]"):
        (tmp_path / "other.yaml").write_text(content)
        with pytest.raises(ConfigError, match=r"the config file .*other\.yaml is not used: "):
            load_config(tmp_path / "other.yaml")


def test_the_meta_device_holds_no_values():
    with pytest.raises(ConfigError, match="the device 'meta' cannot be used"):
        resolve_device("meta")
