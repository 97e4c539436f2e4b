"""Trained weights that bring their config: by name, from files, folders, URLs and the hub."""

from __future__ import annotations

import http.server
import json
import threading
from pathlib import Path
from urllib.parse import unquote

import pytest
import torch
from detectron2.config import instantiate
from huggingface_hub import constants
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from salience_detr import Predictor, __version__
from salience_detr.checkpoint import CheckpointError, catalog, save_weights
from salience_detr.checkpoint.origin import Origin, read_origin
from salience_detr.checkpoint.paths import local_path
from salience_detr.checkpoint.published import SHIPPED
from salience_detr.cli import convert_checkpoint, train
from salience_detr.config import ConfigError, load_config, to_yaml
from salience_detr.data.classes import ClassList
from salience_detr.inference.loading import load_detector

ROOT = Path(__file__).resolve().parents[1]
CLASSES = ClassList(("nick", "hole"), (4, 9))


@pytest.fixture(autouse=True)
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def run_folder(tmp_path, micro_config):
    """The folder of a run with two classes."""
    folder = tmp_path / "run"
    folder.mkdir()
    config = load_config(micro_config, ["model.num_classes=2"])
    (folder / "config.yaml").write_text(to_yaml(config))
    state = instantiate(config.model).state_dict()
    save_weights(state, folder / "model_final.pth", classes=CLASSES)
    save_weights(state, folder / "model_best.pth", classes=CLASSES)
    return folder


def test_a_shipped_model_from_another_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    predictor = Predictor.from_pretrained("neu_det_r18", device="cpu", score_threshold=0.3)
    given = Predictor(
        ROOT / "configs/neu_det_r18.py", ROOT / "demo/neu_det_r18.safetensors", device="cpu"
    )

    image = torch.randint(0, 256, (3, 200, 200), dtype=torch.uint8)
    expected = given(image)
    confident = expected.scores[expected.scores >= 0.3]
    assert torch.equal(predictor(image).scores, confident)
    assert predictor.class_names == given.class_names


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_weights_name_their_config_classes_and_version(name):
    with safe_open(ROOT / "demo" / f"{name}.safetensors", framework="pt") as file:
        metadata = file.metadata()
    assert metadata["config_name"] == name
    assert len(json.loads(metadata["class_names"])) == len(json.loads(metadata["category_ids"]))
    assert metadata["salience_detr_version"] == __version__


def test_the_folder_of_a_run_stands_for_its_best_weights(run_folder):
    predictor = Predictor.from_pretrained(run_folder, device="cpu")
    assert predictor.class_names == ["nick", "hole"] and predictor.model.num_classes == 2
    assert local_path(run_folder) == str(run_folder / "model_best.pth")

    (run_folder / "model_best.pth").unlink()
    assert local_path(run_folder) == str(run_folder / "model_final.pth")
    (run_folder / "model_final.pth").unlink()
    with pytest.raises(CheckpointError, match=r"no model_best\.pth and no model_final\.pth"):
        Predictor.from_pretrained(run_folder)


def test_weights_keep_their_classes_where_other_data_are_at_hand(run_folder, surface_data):
    predictor = Predictor.from_pretrained(run_folder, device="cpu")
    assert predictor.classes.category_ids == CLASSES.category_ids

    config = run_folder / "config.yaml"
    with pytest.raises(CheckpointError, match="lacks 6 of the data set's 6 classes"):
        Predictor(config, run_folder, device="cpu")


def test_a_checkpoint_uses_the_config_beside_it(run_folder):
    path = run_folder / "model_final.pth"
    assert len(Predictor.from_pretrained(path, device="cpu").class_names) == 2
    detector = load_detector(None, path, device="cpu", overrides=["model.max_detections=5"])
    assert detector.config.model.max_detections == 5

    (run_folder / "config.yaml").unlink()
    with pytest.raises(ConfigError, match=r"do not name the config .* add it \(--config-file\)"):
        Predictor.from_pretrained(path)


def test_a_converted_file_is_enough(run_folder, tmp_path, capsys):
    source = run_folder / "model_best.pth"
    alone = tmp_path / "alone" / "mine.safetensors"
    alone.parent.mkdir()
    assert convert_checkpoint.main([str(source), str(alone)]) == 0
    assert "its config: written into the new file as a whole" in capsys.readouterr().out
    assert alone.stat().st_mode & 0o777 == source.stat().st_mode & 0o777

    predictor = Predictor.from_pretrained(alone, device="cpu")
    given = Predictor.from_pretrained(source, device="cpu")
    assert predictor.config == given.config and predictor.classes == given.classes

    again = tmp_path / "alone" / "again.safetensors"
    assert convert_checkpoint.main([str(alone), str(again)]) == 0
    assert Predictor.from_pretrained(again, device="cpu").config == given.config


def test_a_converted_file_names_the_config_that_is_given(run_folder, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a checkout may have outputs, whose paths would become absolute
    source = tmp_path / "alone.pth"
    (run_folder / "model_best.pth").rename(source)
    target = tmp_path / "mine.safetensors"
    assert convert_checkpoint.main([str(source), str(target)]) == 0
    assert "does not name its config: add --config-file" in capsys.readouterr().out
    assert read_origin(target) is None

    words = [str(source), str(target), "--config-file"]
    assert convert_checkpoint.main([*words, "surface_defects_tiny"]) == 0
    assert read_origin(target) == Origin("surface_defects_tiny")
    assert convert_checkpoint.main([*words, str(run_folder / "config.yaml")]) == 0
    assert read_origin(target).config_yaml == (run_folder / "config.yaml").read_text()


def test_a_training_from_weights_does_not_write_into_their_run(run_folder, tmp_path):
    output = tmp_path / "other"
    words = ["--weights", str(run_folder), f"train.output_dir={run_folder}"]
    with pytest.raises(ConfigError, match=r"earlier run, .*: add --output DIR"):
        train.make_config(train.parse_args(words))

    config = train.make_config(train.parse_args([*words[:2], f"train.output_dir={output}"]))
    assert config.model.num_classes == 2 and config.train.init_checkpoint == str(run_folder)
    with pytest.raises(ConfigError, match="which model"):
        train.make_config(train.parse_args([]))


def test_a_config_in_a_file_is_data(run_folder, tmp_path):
    text = (run_folder / "config.yaml").read_text()
    evil = text.replace("salience_detr.data.build_test_loader", "os.system")
    evil = evil.replace("salience_detr.data.loader.build_test_loader", "os.system")
    assert evil != text
    save_file({"a": torch.zeros(1)}, tmp_path / "evil.safetensors", metadata={"config": evil})
    with pytest.raises(ConfigError, match=r"config of .*evil\.safetensors is not used: .*os\.sys"):
        Predictor.from_pretrained(tmp_path / "evil.safetensors")


def test_a_named_config_takes_the_number_of_classes_from_the_file(tmp_path):
    model = instantiate(load_config("neu_det_r18", ["model.num_classes=2"]).model)
    path = tmp_path / "two.safetensors"
    save_weights(model.state_dict(), path, classes=CLASSES, origin=Origin("neu_det_r18"))
    assert Predictor.from_pretrained(path, device="cpu").class_names == ["nick", "hole"]


def test_the_name_of_a_released_file_tells_its_config(tmp_path):
    path = tmp_path / "salience_detr_resnet50_800_1333_coco_1x.pth"
    path.touch()
    with pytest.raises(CheckpointError, match="cannot be read"):
        Predictor.from_pretrained(path)


def test_released_weights_without_a_network_say_where_to_put_the_file(tmp_path, monkeypatch):
    def refuse(*args, **options):
        raise OSError("no route to host")

    monkeypatch.setattr(catalog, "urlopen", refuse)
    with pytest.raises(CheckpointError, match="no route to host; you can put the file") as error:
        Predictor.from_pretrained("salience_detr_r50_4scale_12ep")
    placed = Path(str(error.value).rpartition(": ")[2])
    assert placed.is_relative_to(tmp_path / "cache") and "\n" not in str(error.value)

    # It is found there.
    placed.parent.mkdir(parents=True, exist_ok=True)
    placed.write_bytes(b"content")
    assert local_path("salience_detr_r50_4scale_12ep") == str(placed)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A server that answers as the Hugging Face hub does; returns the folder of its models."""
    folder = tmp_path / "hub"

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            path = unquote(self.path.partition("?")[0])
            kind, _, rest = path.partition("/tree/main")
            if kind.startswith("/api/models/") and not rest:
                names = [x.name for x in (folder / kind[len("/api/models/") :]).iterdir()]
                files = [{"type": "file", "path": x, "size": 1, "oid": "0" * 40} for x in names]
                self.answer(json.dumps(files).encode())
                return

            file = folder / path[1:].replace("/resolve/main", "")
            self.answer(file.read_bytes() if file.is_file() else None)

        do_HEAD = do_GET

        def answer(self, content):
            self.send_response(404 if content is None else 200)
            if content is None:
                self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("ETag", f'"{hash(content):x}"')
            self.send_header("X-Repo-Commit", "1" * 40)
            self.send_header("Content-Length", str(len(content or b"")))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content or b"")

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    template = address + constants.HUGGINGFACE_CO_URL_TEMPLATE[len(constants.ENDPOINT) :]
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub_cache"))
    yield folder
    server.shutdown()


def test_models_on_the_hub(hub, run_folder):
    model = hub / "me" / "mine"
    model.mkdir(parents=True)
    convert_checkpoint.main([str(run_folder / "model_best.pth"), str(model / "mine.safetensors")])
    for path in ("hf://me/mine", "hf://me/mine/mine.safetensors"):
        predictor = Predictor.from_pretrained(path, device="cpu")
        assert predictor.class_names == ["nick", "hole"]

    # A checkpoint without metadata has the config of its model beside it.
    other = hub / "me" / "other"
    other.mkdir()
    save_file(load_file(model / "mine.safetensors"), other / "model.safetensors")
    with pytest.raises(ConfigError, match="do not name the config"):
        Predictor.from_pretrained("hf://me/other")
    (other / "config.yaml").write_text((run_folder / "config.yaml").read_text())
    assert Predictor.from_pretrained("hf://me/other", device="cpu").model.num_classes == 2

    (model / "second.safetensors").touch()
    with pytest.raises(CheckpointError, match=r"several files, name one as hf://me/mine/FILE: "):
        local_path("hf://me/mine")


@pytest.mark.parametrize("path", ["hf://", "hf://mine", "hf:///mine/x"])
def test_other_addresses_of_the_hub_are_refused(path):
    with pytest.raises(CheckpointError, match=r"not of the form hf://owner/name"):
        local_path(path)


def test_the_hub_without_a_network_says_where_to_put_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub_cache"))
    with pytest.raises(
        CheckpointError, match=r"127\.0\.0\.1:9 cannot be reached.*by hand"
    ) as error:
        Predictor.from_pretrained("hf://me/mine")

    placed = Path(str(error.value).rpartition(": ")[2])
    assert placed == tmp_path / "cache" / "huggingface" / "me" / "mine" / "model.safetensors"
    placed.parent.mkdir(parents=True)
    placed.touch()
    assert local_path("hf://me/mine") == str(placed)
