"""The tool that draws the inside of a model, on good images, broken ones, and wrong calls."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import save_file

from salience_detr import Predictor
from salience_detr.cli.visualize_model import main, parse_args

KINDS = ("cam", "proposals", "salience_levels", "sampling", "tokens")


@pytest.fixture
def weights(micro_config, tmp_path) -> Path:
    path = tmp_path / "weights.safetensors"
    save_file(Predictor(micro_config, None, device="cpu").model.state_dict(), path)
    return path


@pytest.fixture
def images(surface_data, tmp_path) -> Path:
    """A good image whose name is not ASCII, a gray one, and one that is broken."""
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "größe.jpg").write_bytes((surface_data / "val" / "000001.jpg").read_bytes())
    Image.fromarray(np.random.randint(0, 255, (40, 90), np.uint8)).save(folder / "gray.png")
    (folder / "broken.jpg").write_bytes(b"\xff\xd8 no image")
    return folder


@pytest.fixture
def call(micro_config, weights, tmp_path):
    def run(*words):
        start = ["--config-file", micro_config, "--weights", str(weights), "--device", "cpu"]
        return main([*start, "--output", str(tmp_path / "out"), *map(str, words)])

    return run


def outputs(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "out").iterdir())


def test_all_parts_are_drawn_and_broken_images_are_listed(call, images, tmp_path, capsys):
    assert call("--input", images) == 0
    expected = [f"{name}_{kind}.png" for name in ("gray", "größe") for kind in KINDS]
    assert outputs(tmp_path) == sorted([*expected, "queries.png"])
    for name in outputs(tmp_path):
        with Image.open(tmp_path / "out" / name) as image:
            image.load()
            assert image.format == "PNG" and image.mode == "RGB"
    told = capsys.readouterr()
    assert "2 images looked into" in told.out
    assert "1 inputs were skipped" in told.err and "broken.jpg" in told.err


def test_chosen_parts_of_a_chosen_query(call, images, tmp_path):
    assert call("--input", images / "gray.png", "--parts", "sampling", "cam") == 0
    assert outputs(tmp_path) == ["gray_cam.png", "gray_sampling.png"]
    first = [(tmp_path / "out" / name).read_bytes() for name in outputs(tmp_path)]
    for query in ("3", "7"):
        assert (
            call("--input", images / "gray.png", "--parts", "sampling", "cam", "--query", query)
            == 0
        )
        second = [(tmp_path / "out" / name).read_bytes() for name in outputs(tmp_path)]
        assert all(one != other for one, other in zip(first, second, strict=True))
        first = second


def test_images_of_one_name_and_inputs_are_not_overwritten(call, images, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    original = (images / "gray.png").read_bytes()
    for name in ("gray.png", "gray_tokens.png", "queries.png"):
        (out / name).write_bytes(original)
    words = [
        "--input",
        images / "gray.png",
        *(out / x for x in ("gray.png", "gray_tokens.png", "queries.png")),
    ]
    assert call(*words, "--parts", "tokens", "queries") == 0
    drawn = {
        "gray_2_tokens.png",
        "gray_3_tokens.png",
        "gray_tokens_tokens.png",
        "queries_tokens.png",
        "queries_2.png",
    }
    assert set(outputs(tmp_path)) == {"gray.png", "gray_tokens.png", "queries.png"} | drawn
    assert all(
        (out / name).read_bytes() == original
        for name in ("gray.png", "gray_tokens.png", "queries.png")
    )


def test_only_broken_images_are_a_failure(call, images, tmp_path):
    assert call("--input", images / "broken.jpg") == 1
    assert outputs(tmp_path) == []


def test_a_query_that_one_image_lacks_is_an_error_of_that_image(call, images, tmp_path, capsys):
    # Padded to 32 x 32, an image has 16 + 4 + 1 tokens; the suppression leaves fewer than 20.
    Image.new("RGB", (30, 30)).save(images / "tiny.png")
    words = ["--parts", "sampling", "--query", "19", "dataloader.test.mapper.augmentations=[]"]
    assert call("--input", images / "tiny.png", images / "gray.png", *words) == 0
    assert outputs(tmp_path) == ["gray_sampling.png"]
    assert "tiny.png: there is no query 19: this image has" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--input", "nowhere"], "--input nowhere: there is no such image"),
        (
            ["--input", "{in}", "--query", "20"],
            "--query is 20, but the model has 20, from 0 on",
        ),
        (["--input", "{in}", "--device", "gpu"], "the device 'gpu' cannot be used"),
        (["--input", "{in}", "--weights", "nothing.pth"], "nothing.pth"),
        (["--input", "{in}", "model.num_querys=3"], "num_querys"),
        (["--input", "{in}", "--output", "{in}/gray.png"], "cannot be written to"),
    ],
)
def test_mistakes_are_one_line(call, images, words, message, capsys):
    assert call(*(word.replace("{in}", str(images)) for word in words)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and message in line


def test_videos_are_left_to_the_demo(call, images, tmp_path, capsys):
    (images / "film.mp4").write_bytes(b"")
    assert call("--input", images / "film.mp4", images / "gray.png", "--parts", "tokens") == 0
    assert "film.mp4 is a video" in capsys.readouterr().err
    assert call("--input", images / "film.mp4") == 2


def test_overrides_may_follow_a_list_and_wrong_words_are_refused(capsys):
    start = ["--config-file", "f", "--weights", "w", "--output", "o"]
    args = parse_args([*start, "--input", "a.jpg", "x=1", "--parts", "cam", "model.y=2"])
    assert (
        args.input == ["a.jpg"]
        and args.parts == ["cam"]
        and sorted(args.opts) == ["model.y=2", "x=1"]
    )
    for words in (["--parts", "camera"], ["--query", "-1"], ["--parts", "x=1"]):
        with pytest.raises(SystemExit) as stop:
            parse_args([*start, "--input", "a.jpg", *words])
        assert stop.value.code == 2
    assert "--parts: invalid choice: 'camera'" in capsys.readouterr().err
