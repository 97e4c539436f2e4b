"""Reading, converting and loading checkpoints, strictly."""

from __future__ import annotations

import functools
import http.server
import json
import os
import threading
from pathlib import Path

import pytest
import torch
from detectron2.config import LazyConfig, instantiate
from safetensors.torch import save_file
from torch import nn
from torchvision.models import resnet50

from salience_detr.checkpoint import (
    COCO_CATEGORY_IDS,
    CheckpointError,
    convert_reference_checkpoint,
    load_weights,
    read_checkpoint,
    reference_conversion,
)
from salience_detr.checkpoint.catalog import torchvision_weights_url
from salience_detr.config import load_config
from salience_detr.data.classes import ClassList

ROOT = Path(__file__).resolve().parents[2]
R50 = ROOT / "configs" / "salience_detr_r50_4scale_12ep.py"


def reference_checkpoint(manifest):
    """Return a state dict of a published model's names and shapes; class rows hold their index."""
    shapes = json.loads(manifest.read_text())["parameters"]
    state = {name: torch.full(shape, 0.01) for name, shape in shapes.items()}
    for name in state:
        if state[name].shape[:1] == (91,):
            rows = torch.arange(91.0).view(-1, *[1] * (state[name].dim() - 1))
            state[name] = rows.expand_as(state[name]).clone()
    return state


@pytest.fixture(scope="module")
def reference(shared):
    return reference_checkpoint(shared("parity/r50_4scale_eval.json"))


@pytest.mark.parametrize("name", ["r50_4scale", "r50_5scale", "convnext_l", "swin_l", "focalnet_l"])
def test_a_converted_checkpoint_fills_the_model_exactly(shared, name):
    manifest = shared(f"parity/{name}_eval.json")
    with torch.device("meta"):
        converted = convert_reference_checkpoint(reference_checkpoint(manifest))
    config = LazyConfig.load(
        os.path.join(os.path.dirname(__file__), f"../../configs/salience_detr_{name}_12ep.py")
    )
    with torch.device(
        "cpu" if name == "swin_l" else "meta"
    ):  # detectron2's needs numbers while it is built
        model = instantiate(config.model)
    own = {name: tuple(x.shape) for name, x in model.state_dict().items()}
    assert {name: tuple(x.shape) for name, x in converted.items()} == own


def test_conversion_keeps_the_rows_of_the_used_categories_in_order(reference):
    converted = convert_reference_checkpoint(reference)
    for name in (
        "query_selection.class_head.weight",
        "decoder.class_heads.5.bias",
        "denoising.label_encoder.weight",
    ):
        rows = converted[name] if converted[name].dim() == 1 else converted[name][:, 0]
        assert rows.tolist() == list(COCO_CATEGORY_IDS)
    assert len(COCO_CATEGORY_IDS) == 80 and COCO_CATEGORY_IDS[-1] == 90


def test_all_rows_are_kept_on_request(reference):
    assert (
        len(
            convert_reference_checkpoint(reference, category_ids=None)[
                "query_selection.class_head.bias"
            ]
        )
        == 91
    )


def test_a_wrapped_file_with_constants_and_class_names_converts(reference):
    extra = {
        "_classes_": torch.zeros(91, dtype=torch.int64),
        "transformer.layer_filter_ratio": torch.ones(6),
    }
    assert (
        convert_reference_checkpoint({"model": reference | extra}).keys()
        == convert_reference_checkpoint(reference).keys()
    )


def test_missing_and_unknown_names_are_listed(reference):
    broken = dict(reference)
    del broken["transformer.decoder.layers.3.norm1.weight"]
    broken["transformer.surprise"] = torch.zeros(1)
    with pytest.raises(CheckpointError) as error:
        convert_reference_checkpoint(broken)
    assert "transformer.decoder.layers.3.norm1.weight" in str(error.value)
    assert "transformer.surprise" in str(error.value)


def test_too_few_class_rows_name_both_numbers(reference):
    small = {name: x[:7] if x.shape[:1] == (91,) else x for name, x in reference.items()}
    with pytest.raises(CheckpointError, match=r"7 class rows.*up to 90.*category_ids=None"):
        convert_reference_checkpoint(small)


def test_a_file_of_other_data_than_coco_keeps_its_rows(reference, tmp_path):
    seven = {name: x[:7] if x.shape[:1] == (91,) else x for name, x in reference.items()}
    torch.save(seven, tmp_path / "seven.pth")
    with torch.device("meta"):
        model = instantiate(load_config(R50, ["model.num_classes=3"]).model)
    with pytest.raises(CheckpointError, match=r"7 classes, the model 3: set model\.num_classes=7"):
        load_weights(model, tmp_path / "seven.pth")


def test_torchvision_names_lead_to_their_files():
    url = torchvision_weights_url("ResNet50_Weights.IMAGENET1K_V2")
    assert url.endswith("resnet50-11ad3fa6.pth")
    for name in ("resnet51", "ResNet50_Weights.IMAGENET1K_V9", "ResNet51_Weights.IMAGENET1K_V1"):
        with pytest.raises(CheckpointError, match=f"no weights '{name}'"):
            torchvision_weights_url(name)


def test_our_own_checkpoint_round_trips(tmp_path, micro_config):
    config = load_config(micro_config)
    source, target = instantiate(config.model), instantiate(config.model)
    torch.save({"model": source.state_dict(), "iteration": 3}, tmp_path / "a.pth")
    save_file(source.state_dict(), tmp_path / "a.safetensors")
    torch.save(
        {f"module.{name}": x for name, x in source.state_dict().items()},
        tmp_path / "distributed.pth",
    )
    for name in ("a.pth", "a.safetensors", "distributed.pth"):
        nn.init.zeros_(target.query_embedding)
        load_weights(target, tmp_path / name)
        assert all(
            torch.equal(a, b)
            for a, b in zip(source.state_dict().values(), target.state_dict().values(), strict=True)
        )


def test_another_number_of_classes_says_both_numbers_and_loads_nothing(tmp_path, micro_config):
    source = instantiate(load_config(micro_config, ["model.num_classes=9"]).model)
    target = instantiate(load_config(micro_config).model)
    before = target.query_embedding.clone()
    torch.save(source.state_dict(), tmp_path / "nine.pth")
    with pytest.raises(CheckpointError, match=r"9 classes, the model 6: set model\.num_classes=9"):
        load_weights(target, tmp_path / "nine.pth")
    assert torch.equal(target.query_embedding, before)


def test_a_checkpoint_of_another_model_says_so(tmp_path, micro_config):
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "linear.pth")
    with pytest.raises(
        CheckpointError, match=r"of another model: it looks like something unknown \(bias, weight\)"
    ):
        load_weights(instantiate(load_config(micro_config).model), tmp_path / "linear.pth")


@pytest.mark.parametrize("name", ["cut.pth", "cut.safetensors"])
def test_a_truncated_file_is_reported(tmp_path, name):
    path = tmp_path / name
    state = {"weight": torch.randn(1000)}
    save_file(state, path) if name.endswith("safetensors") else torch.save(state, path)
    path.write_bytes(path.read_bytes()[:1500])
    with pytest.raises(CheckpointError, match="truncated"):
        read_checkpoint(path)


def test_code_in_a_checkpoint_is_never_run(tmp_path):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "sprung"), "w"))

    torch.save({"model": Trap()}, tmp_path / "trap.pth")
    with pytest.raises(CheckpointError, match="could run code"):
        read_checkpoint(tmp_path / "trap.pth")
    assert not (tmp_path / "sprung").exists()


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"there is no checkpoint file .*nothing\.pth"):
        read_checkpoint(tmp_path / "nothing.pth")


def test_names_are_unique_both_ways(reference):
    names = list(reference_conversion.reference_renames(reference))
    assert len({name.theirs for name in names}) == len({name.ours for name in names}) == len(names)


def test_a_backbone_alone_is_for_training_only(tmp_path):
    torch.save(resnet50().state_dict(), tmp_path / "resnet.pth")
    with pytest.raises(CheckpointError, match="the backbone only"):
        load_weights(nn.Linear(2, 2), tmp_path / "resnet.pth")


@pytest.mark.parametrize("content", [{"model": None}, {"model": "resnet50"}, {}])
def test_a_file_without_weights_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match="holds no state dict"):
        load_weights(nn.Linear(2, 2), tmp_path / "a.pth")


@pytest.fixture
def server(tmp_path, monkeypatch):
    """The URL of the folder ``files`` and a place for what is downloaded."""
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "cache"))
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path / "files")
    (tmp_path / "files").mkdir()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def test_weights_are_downloaded_once_from_a_url(server, tmp_path, micro_config):
    source, target = (instantiate(load_config(micro_config).model) for _ in range(2))
    file = tmp_path / "files" / "a.pth"
    torch.save(source.state_dict(), file)
    load_weights(target, f"{server}/a.pth")
    assert torch.equal(source.query_embedding, target.query_embedding)
    file.unlink()
    load_weights(target, f"{server}/a.pth")
    with pytest.raises(CheckpointError, match=rf"cannot get the checkpoint {server}/b\.pth: .*404"):
        load_weights(target, f"{server}/b.pth")


def test_names_that_a_published_checkpoint_saves_choose_its_rows(reference, tmp_path):
    # Ids 1 and 3 are used; training left the 91 rows of the published configs.
    text = ["none", "pit", "none", "dent"]
    codes = [code for name in text for code in [*map(ord, name), -1]]
    counts = {name: x.long() for name, x in reference.items() if name.endswith("_tracked")}
    names = {"_classes_": torch.tensor(codes)}
    torch.save({**reference, **counts, **names}, tmp_path / "own.pth")
    with torch.device("meta"):
        model = instantiate(load_config(R50, ["model.num_classes=2"]).model)
    model = model.to_empty(device="cpu")
    found = load_weights(model, tmp_path / "own.pth")
    assert found == ClassList(("pit", "dent"), (1, 3))
    assert model.query_selection.class_head.bias.tolist() == [1, 3]
