"""The tool that draws the inside of a model, on good pictures, broken ones, and wrong calls."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import save_file

from salience_detr import Predictor
from tools.visualize_model import main, parse_args

KINDS = ("cam", "proposals", "salience_levels", "sampling", "tokens")


@pytest.fixture
def weights(micro_config, tmp_path) -> Path:
    path = tmp_path / "weights.safetensors"
    save_file(Predictor(micro_config, None, device="cpu").model.state_dict(), path)
    return path


@pytest.fixture
def pictures(surface_data, tmp_path) -> Path:
    """A good picture whose name is not ASCII, a grey one, and one that is broken."""
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "größe.jpg").write_bytes((surface_data / "val" / "000001.jpg").read_bytes())
    Image.fromarray(np.random.randint(0, 255, (40, 90), np.uint8)).save(folder / "grey.png")
    (folder / "broken.jpg").write_bytes(b"\xff\xd8 no picture")
    return folder


@pytest.fixture
def call(micro_config, weights, tmp_path):
    def run(*words):
        start = ["--config-file", micro_config, "--weights", str(weights), "--device", "cpu"]
        return main([*start, "--output", str(tmp_path / "out"), *map(str, words)])

    return run


def outputs(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "out").iterdir())


def test_all_parts_are_drawn_and_broken_pictures_are_listed(call, pictures, tmp_path, capsys):
    assert call("--input", pictures) == 0
    expected = [f"{name}_{kind}.png" for name in ("grey", "größe") for kind in KINDS]
    assert outputs(tmp_path) == sorted([*expected, "queries.png"])
    for name in outputs(tmp_path):
        with Image.open(tmp_path / "out" / name) as image:
            image.load()
            assert image.format == "PNG" and image.mode == "RGB"
    told = capsys.readouterr()
    assert "2 pictures looked into" in told.out
    assert "1 inputs were passed over" in told.err and "broken.jpg" in told.err


def test_chosen_parts_of_a_chosen_query(call, pictures, tmp_path):
    assert call("--input", pictures / "grey.png", "--parts", "sampling", "cam") == 0
    assert outputs(tmp_path) == ["grey_cam.png", "grey_sampling.png"]
    first = [(tmp_path / "out" / name).read_bytes() for name in outputs(tmp_path)]
    for query in ("3", "7"):
        assert call("--input", pictures / "grey.png", "--parts", "sampling", "cam", "--query", query) == 0
        second = [(tmp_path / "out" / name).read_bytes() for name in outputs(tmp_path)]
        assert all(one != other for one, other in zip(first, second, strict=True))
        first = second


def test_pictures_of_one_name_and_inputs_are_not_overwritten(call, pictures, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    original = (pictures / "grey.png").read_bytes()
    for name in ("grey.png", "grey_tokens.png", "queries.png"):
        (out / name).write_bytes(original)
    words = ["--input", pictures / "grey.png", *(out / x for x in ("grey.png", "grey_tokens.png", "queries.png"))]
    assert call(*words, "--parts", "tokens", "queries") == 0
    drawn = {"grey_2_tokens.png", "grey_3_tokens.png", "grey_tokens_tokens.png", "queries_tokens.png", "queries_2.png"}
    assert set(outputs(tmp_path)) == {"grey.png", "grey_tokens.png", "queries.png"} | drawn
    assert all((out / name).read_bytes() == original for name in ("grey.png", "grey_tokens.png", "queries.png"))


def test_only_broken_pictures_are_a_failure(call, pictures, tmp_path):
    assert call("--input", pictures / "broken.jpg") == 1
    assert outputs(tmp_path) == []


def test_a_query_that_one_picture_lacks_is_said_of_that_picture(call, pictures, tmp_path, capsys):
    # Padded to 32 x 32 a picture has 16 + 4 + 1 tokens, of which the suppression leaves fewer than 20.
    Image.new("RGB", (30, 30)).save(pictures / "tiny.png")
    words = ["--parts", "sampling", "--query", "19", "dataloader.test.mapper.augmentations=[]"]
    assert call("--input", pictures / "tiny.png", pictures / "grey.png", *words) == 0
    assert outputs(tmp_path) == ["grey_sampling.png"]
    assert "tiny.png: there is no query 19: this picture has" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--input", "nowhere"], "--input nowhere: there is no such picture"),
        (["--input", "{in}", "--query", "20"], "--query is 20, but the model has 20, numbered from 0"),
        (["--input", "{in}", "--device", "gpu"], "the device 'gpu' cannot be used"),
        (["--input", "{in}", "--weights", "nothing.pth"], "nothing.pth"),
        (["--input", "{in}", "model.num_querys=3"], "num_querys"),
        (["--input", "{in}", "--output", "{in}/grey.png"], "cannot be written to"),
    ],
)
def test_mistakes_are_one_line(call, pictures, words, message, capsys):
    assert call(*(word.replace("{in}", str(pictures)) for word in words)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and message in line


def test_videos_are_left_to_the_demo(call, pictures, tmp_path, capsys):
    (pictures / "film.mp4").write_bytes(b"")
    assert call("--input", pictures / "film.mp4", pictures / "grey.png", "--parts", "tokens") == 0
    assert "film.mp4 is a video" in capsys.readouterr().err
    assert call("--input", pictures / "film.mp4") == 2


def test_overrides_may_follow_a_list_and_wrong_words_are_refused(capsys):
    start = ["--config-file", "f", "--weights", "w", "--output", "o"]
    args = parse_args([*start, "--input", "a.jpg", "x=1", "--parts", "cam", "model.y=2"])
    assert args.input == ["a.jpg"] and args.parts == ["cam"] and sorted(args.opts) == ["model.y=2", "x=1"]
    for words in (["--parts", "camera"], ["--query", "-1"], ["--parts", "x=1"]):
        with pytest.raises(SystemExit) as stop:
            parse_args([*start, "--input", "a.jpg", *words])
        assert stop.value.code == 2
    assert "--parts camera is unknown" in capsys.readouterr().err
