"""Sources of detectron2, their order, and messages if none works; pip and git are simulated."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from salience_detr.cli import install_detectron2
from salience_detr.cli.install_detectron2 import (
    SourceError,
    extract_package,
    install,
    verify_sha256,
)
from salience_detr.utils.requirements import NO_DETECTRON2


@pytest.fixture
def labgym(tmp_path):
    """Make a wheel with a tiny LabGym/detectron2 in it."""
    path = tmp_path / "labgym-3.1.2-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("LabGym/__init__.py", "")
        archive.writestr("LabGym/detectron2/__init__.py", "__version__ = '0.6'\n")
        archive.writestr("LabGym/detectron2/user.py", "from LabGym.detectron2 import __version__\n")
        archive.writestr("LabGym/detectron2/configs/LVISv0.5-Masks/one.yaml", "a: 1\n")
    return path


class Commands:
    """Answers commands: those that contain a failing word fail; pip download delivers the wheel."""

    def __init__(self, wheel: Path):
        self.wheel = wheel
        self.failing = []
        self.seen = []

    def __call__(self, command, **options):
        words = " ".join(command)
        self.seen.append(words)
        if any(word in words for word in self.failing):
            return subprocess.CompletedProcess(command, 1, "", "no network")
        if "download" in command:
            target = Path(command[command.index("-d") + 1]) / self.wheel.name
            target.write_bytes(self.wheel.read_bytes())
        return subprocess.CompletedProcess(command, 0, "", "")


@pytest.fixture
def commands(labgym, monkeypatch):
    """Replace git and pip, in an environment without detectron2."""
    commands = Commands(labgym)
    digest = hashlib.sha256(labgym.read_bytes()).hexdigest()
    monkeypatch.setattr(install_detectron2.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(install_detectron2.subprocess, "run", commands)
    monkeypatch.setattr(install_detectron2, "WHEEL_SHA256", digest)
    monkeypatch.delenv("DETECTRON2_SOURCE", raising=False)
    return commands


def test_an_importable_one_is_left_alone(commands, monkeypatch):
    monkeypatch.setattr(install_detectron2.importlib.util, "find_spec", lambda name: "found")
    assert "importable already" in install()
    assert commands.seen == []


def test_the_named_source_comes_before_git(commands, monkeypatch):
    monkeypatch.setenv("DETECTRON2_SOURCE", "/some/where")
    assert install() == "detectron2 from DETECTRON2_SOURCE=/some/where"
    assert len(commands.seen) == 1
    assert commands.seen[0].endswith("install --no-build-isolation /some/where")


def test_a_named_source_that_fails_is_not_replaced(commands, monkeypatch):
    monkeypatch.setenv("DETECTRON2_SOURCE", "/some/where")
    commands.failing = ["/some/where"]
    with pytest.raises(SourceError, match=r"DETECTRON2_SOURCE=/some/where failed: no network"):
        install()
    assert len(commands.seen) == 1


def test_git_is_taken_at_the_pinned_commit(commands):
    assert install_detectron2.GIT_COMMIT[:10] in install()
    assert f"@{install_detectron2.GIT_COMMIT}" in commands.seen[-1]


def test_without_git_the_copy_in_the_wheel_is_installed(commands, capsys):
    commands.failing = ["ls-remote"]
    assert "pure-Python copy" in install()
    assert "install --no-deps" in commands.seen[-1]
    assert "skipped Git" in capsys.readouterr().out


def test_when_nothing_works_every_source_and_the_remedy_are_named(commands):
    commands.failing = ["ls-remote", "download"]
    with pytest.raises(SourceError) as error:
        install()
    assert all(word in str(error.value) for word in ("Git:", "wheel:", "set DETECTRON2_SOURCE"))


def test_a_changed_wheel_is_not_installed(commands, labgym):
    commands.failing = ["ls-remote"]
    labgym.write_bytes(labgym.read_bytes() + b"x")
    with pytest.raises(SourceError, match="it is not the file that was tested"):
        install()
    assert not any("install --no-deps" in words for words in commands.seen)


def test_the_hash_is_compared(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"a")
    verify_sha256(path, hashlib.sha256(b"a").hexdigest())
    with pytest.raises(SourceError, match="has sha256"):
        verify_sha256(path, "0" * 64)


def test_a_wheel_without_the_copy_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "other.whl", "w") as archive:
        archive.writestr("LabGym/__init__.py", "")
    with pytest.raises(SourceError, match=r"other\.whl holds no LabGym/detectron2"):
        extract_package(tmp_path / "other.whl", tmp_path / "source")


def test_pip_installs_all_files_of_the_copy_under_its_own_name(labgym, tmp_path):
    extract_package(labgym, tmp_path / "source")
    target = tmp_path / "site"
    options = ["--quiet", "--no-deps", "--no-index", "--no-build-isolation", "--target"]
    command = [sys.executable, "-m", "pip", "install", *options, str(target)]
    subprocess.run([*command, str(tmp_path / "source")], check=True)
    package = target / "detectron2"
    assert (package / "user.py").read_text() == "from detectron2 import __version__\n"
    assert (package / "configs" / "LVISv0.5-Masks" / "one.yaml").is_file()
    assert not (target / "LabGym").exists()

    code = (
        f"import sys; sys.path.insert(0, {str(target)!r}); import detectron2, importlib.metadata;"
        "print(detectron2.__file__, importlib.metadata.version('detectron2'))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.split() == [str(package / "__init__.py"), "0.6"]


def test_the_package_without_detectron2_names_the_command():
    code = """
import contextlib, io, sys
sys.modules["detectron2"] = None
from salience_detr.cli import main
for programs in main.VERBS.values():
    for program in programs.values():
        with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
            program.parse_args(["--help"], "salience-detr")
for line in (
    "from salience_detr import Predictor", "from salience_detr.modeling import SalienceDETR",
    "import salience_detr.config", "from salience_detr import model_zoo",
    "import salience_detr.data", "import salience_detr.cli.train",
):
    try:
        exec(line)
    except ImportError as error:
        print(error)
print(main.main(["predict", "--weights", "neu_det_r18", "--input", "a", "--output", "b"]))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.splitlines() == [NO_DETECTRON2] * 6 + ["2"]
    assert result.stderr == f"error: {NO_DETECTRON2}\n"
