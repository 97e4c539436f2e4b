"""The folder of wheels for a machine without a network, with a pip that pretends."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from salience_detr.cli.install_detectron2 import SourceError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def tool(monkeypatch):
    """The program; ``tool.only_source`` are packages without wheels, which build to ``tag``."""
    path = ROOT / "tools" / "make_wheel_folder.py"
    spec = importlib.util.spec_from_file_location("make_wheel_folder", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.only_source = set()
    module.tag = "py3-none-any"

    def pip(verb, *words, action):
        name = words[-1].partition("=")[0]
        if verb == "download" and name in module.only_source:
            raise SourceError(f"{action} failed: no matching distribution")
        folder = words[words.index("-d" if verb == "download" else "-w") + 1]
        tag = module.tag if verb == "wheel" else "cp312-cp312-manylinux_2_17_x86_64"
        Path(folder, f"{Path(name).name}-1-{tag}.whl").write_text("wheel")

    monkeypatch.setattr(module, "pip", pip)
    monkeypatch.setattr(module, "verify_sha256", lambda *_: None)
    monkeypatch.setattr(module, "extract_package", lambda wheel, folder: folder.mkdir())
    return module


def test_the_folder_has_one_wheel_of_each_package(tool, tmp_path, capsys):
    tool.only_source = {"iopath", "fvcore"}
    (tmp_path / "old-0-py3-none-any.whl").touch()
    (tmp_path / "notes.txt").touch()
    assert tool.main(["--output", str(tmp_path), "timm"]) == 0

    names = [path.name.partition("-1-")[0] for path in sorted(tmp_path.glob("*.whl"))]
    assert names == sorted([*tool.NAMES, "source", "timm"])
    assert (tmp_path / "iopath-1-py3-none-any.whl").exists()
    assert (tmp_path / "notes.txt").exists()
    assert f"{len(names)} wheels" in capsys.readouterr().out


def test_what_would_not_run_there_is_an_error(tool, tmp_path, capsys):
    tool.only_source = {"pycocotools"}
    tool.tag = "cp311-cp311-linux_x86_64"
    assert tool.main(["--output", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert "error: pycocotools-1-cp311-cp311-linux_x86_64.whl is for this machine only" in error
