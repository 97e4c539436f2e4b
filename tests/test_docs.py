"""Commands and code of the README and the guides: they parse as written, and the cheap ones run."""

from __future__ import annotations

import argparse
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from salience_detr.cli.main import find_program
from salience_detr.data.surface import generate_surface_defects

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
PROGRAM = re.compile(r"(?:python )?((?:tools|demo)/\w+\.py|train_net\.py)(?: |$)")
# Stand-ins of the guides for a config and its weights.
FILES = {"F": "configs/surface_defects_tiny.py", "W": "demo/surface_defects_tiny.safetensors"}


class ParsedError(Exception):
    """Arguments that a program has accepted."""


def blocks(document: Path, language: str) -> list[str]:
    return re.findall(
        rf"^```{language}\n(.*?)^```$", document.read_text(), re.DOTALL | re.MULTILINE
    )


def commands(document: Path) -> list[str]:
    """Return the command lines of all shell blocks, and of code spans that run a program."""
    found = []
    for block in blocks(document, "sh"):
        for line in block.replace("\\\n", " ").splitlines():
            command = re.sub(r"(^|\s)#.*", "", line).strip()
            if command:
                found.append(command)

    for span in re.findall(r"`([^`]+)`", document.read_text()):
        command = " ".join(span.split())
        is_whole = not re.search(r"\.\.\.|\[|\{", command)
        if PROGRAM.match(command) and " " in command and is_whole:
            found.append(command)
    return found


def all_commands() -> list[str]:
    return list(dict.fromkeys(x for document in DOCUMENTS for x in commands(document)))


def program_commands() -> list[str]:
    return [x for x in all_commands() if PROGRAM.search(x) and not x.endswith("--help")]


@pytest.fixture
def parse_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs stop where they have parsed their arguments."""
    for name in ("parse_args", "parse_intermixed_args"):
        original = getattr(argparse.ArgumentParser, name)

        def stop(self, args=None, namespace=None, original=original):
            original(self, args, namespace)
            raise ParsedError

        monkeypatch.setattr(argparse.ArgumentParser, name, stop)


@pytest.mark.parametrize("command", program_commands())
def test_a_program_accepts_its_arguments_as_written(command, parse_only, monkeypatch):
    start = PROGRAM.search(command).start()
    program, *arguments = expand(command[start:].removeprefix("python ").rstrip("'"))
    assert (ROOT / program).is_file()
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", [program, *arguments])
    with pytest.raises(ParsedError):
        runpy.run_path(program, run_name="__main__")


def expand(command: str) -> list[str]:
    """Return the words of a command as the shell expands them in the project's folder."""
    program = ["bash", "-c", f"printf '%s\\0' {command}"]
    output = subprocess.run(program, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return output.split("\0")[:-1]


def test_make_has_the_targets_that_are_named():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {command.split()[1] for command in all_commands() if command.startswith("make ")}
    assert {"setup", "demo", "test"} <= named <= targets


def anchors(document: Path) -> set[str]:
    """Return the anchors of a document's headings, as GitHub names them."""
    text = re.sub(r"^```.*?^```$", "", document.read_text(), flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-") for heading in headings}


def test_links_lead_to_files_and_to_headings():
    missing = []
    for document in DOCUMENTS:
        for link in re.findall(r"\]\(([^)\s]+)\)", document.read_text()):
            if "://" in link:
                continue

            target, _, anchor = link.partition("#")
            path = document.parent / target if target else document
            is_found = path.exists() and (not anchor or anchor in anchors(path))
            if not is_found:
                missing.append(f"{document.name}: {link}")
    assert not missing


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the project, a small data set in data/mine, and the images that guides name."""
    folder = tmp_path_factory.mktemp("workspace")
    for name in ("configs", "demo", "tools", "train_net.py"):
        (folder / name).symlink_to(ROOT / name)

    data = folder / "data" / "mine"
    for split, count in (("train", 8), ("val", 4)):
        generate_surface_defects(
            data, split=split, num_images=count, image_size=(128, 128), progress=False
        )

    image = next((data / "val").glob("*.jpg"))
    (folder / "output" / "demo" / "inputs").mkdir(parents=True)
    for name in ("image.jpg", "a.jpg", "b.jpg", "photo.jpg", "output/demo/inputs/000001.jpg"):
        shutil.copy(image, folder / name)
    return folder


def run(command: str, folder: Path, *more: str) -> None:
    words = [FILES.get(word, word) for word in shlex.split(command)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    program = words[1:]
    if words[0] == "salience-detr":
        program = ["-m", "salience_detr", *program]
    subprocess.run([sys.executable, *program, *more], cwd=folder, env=environment, check=True)


def console_commands() -> list[str]:
    return [x for x in all_commands() if x.startswith("salience-detr ") and "VERB" not in x]


@pytest.mark.parametrize("command", console_commands())
def test_the_console_command_accepts_its_arguments_as_written(command, monkeypatch):
    monkeypatch.chdir(ROOT)
    program, name, words = find_program(expand(command)[1:])
    assert program.parse_args(words, name)


def test_the_way_from_few_images_to_detections_runs_as_written(workspace):
    readme = commands(ROOT / "README.md")
    check, train, val, detect, _ = [x for x in readme if x.startswith("salience-detr")]
    run(check, workspace)
    run(train, workspace, "--image-size", "96", "train.max_iter=4")
    run(val, workspace)
    run(detect, workspace)
    assert len(list((workspace / "output" / "detections").glob("*.jpg"))) == 4


@pytest.mark.parametrize("name", ["README.md", "docs/using.md"])
def test_python_code_runs_as_written(name, workspace, monkeypatch):
    monkeypatch.chdir(workspace)
    code = blocks(ROOT / name, "python")[0]
    namespace = {"frame": np.zeros((40, 60, 3), np.uint8)}
    exec(compile(code, name, "exec"), namespace)
    assert namespace["detections"].draw().shape == (128, 128, 3)
    assert Image.open("image.jpg").size == (128, 128)
