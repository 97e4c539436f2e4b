"""The sources of detectron2, their order, and what is said when none works; pip and git are played."""

from __future__ import annotations

import csv
import hashlib
import io
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tools import install_detectron2
from tools.install_detectron2 import Installer, SourceFailed, repack_wheel, verify_sha256


@pytest.fixture
def labgym(tmp_path):
    """A wheel with a tiny LabGym/detectron2 in it."""
    path = tmp_path / "labgym-3.1.2-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("LabGym/__init__.py", "")
        archive.writestr("LabGym/detectron2/__init__.py", "__version__ = '0.6'\n")
        archive.writestr("LabGym/detectron2/user.py", "from LabGym.detectron2 import __version__\n")
    return path


class Commands:
    """Answers commands: those that contain a failing word fail; pip download delivers the wheel."""

    def __init__(self, wheel: Path, failing=()):
        self.wheel, self.failing, self.seen = wheel, failing, []

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
def installer(labgym, monkeypatch):
    monkeypatch.setattr(install_detectron2.importlib.util, "find_spec", lambda name: None)

    def build(failing=(), **environ):
        commands = Commands(labgym, failing)
        digest = hashlib.sha256(labgym.read_bytes()).hexdigest()
        return Installer(run=commands, environ=environ, wheel_sha256=digest), commands

    return build


def test_an_importable_one_is_left_alone(labgym):
    commands = Commands(labgym)
    assert "importable already" in Installer(run=commands).install()
    assert commands.seen == []


def test_the_named_source_comes_before_git(installer):
    install, commands = installer(DETECTRON2_SOURCE="/some/where")
    assert install.install() == "detectron2 from DETECTRON2_SOURCE=/some/where"
    assert len(commands.seen) == 1 and commands.seen[0].endswith(
        "install --no-build-isolation /some/where"
    )


def test_a_named_source_that_fails_is_not_replaced(installer):
    install, commands = installer(failing=["/some/where"], DETECTRON2_SOURCE="/some/where")
    with pytest.raises(SourceFailed, match=r"DETECTRON2_SOURCE=/some/where failed: no network"):
        install.install()
    assert len(commands.seen) == 1


def test_git_is_taken_at_the_pinned_commit(installer):
    install, commands = installer()
    assert install_detectron2.GIT_COMMIT[:10] in install.install()
    assert f"@{install_detectron2.GIT_COMMIT}" in commands.seen[-1]


def test_without_git_the_wheel_is_repacked_and_installed(installer, capsys):
    install, commands = installer(failing=["ls-remote"])
    assert "pure-Python copy" in install.install()
    assert (
        "--no-deps" in commands.seen[-1] and "detectron2-0.6-py3-none-any.whl" in commands.seen[-1]
    )
    assert "passed over Git" in capsys.readouterr().out


def test_when_nothing_works_every_source_and_the_remedy_are_named(installer):
    install, _ = installer(failing=["ls-remote", "download"])
    with pytest.raises(SourceFailed) as error:
        install.install()
    assert all(word in str(error.value) for word in ("Git:", "wheel:", "set DETECTRON2_SOURCE"))


def test_a_changed_wheel_is_not_installed(installer, labgym):
    install, commands = installer(failing=["ls-remote"])
    labgym.write_bytes(labgym.read_bytes() + b"x")
    with pytest.raises(SourceFailed, match="it is not the file that was tested"):
        install.install()
    assert not any("install --no-deps" in words for words in commands.seen)


def test_the_hash_is_compared(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"a")
    verify_sha256(path, hashlib.sha256(b"a").hexdigest())
    with pytest.raises(SourceFailed, match="has sha256"):
        verify_sha256(path, "0" * 64)


def test_the_repacked_wheel_is_a_proper_one(labgym, tmp_path):
    with zipfile.ZipFile(repack_wheel(labgym, tmp_path / "work")) as archive:
        names = archive.namelist()
        assert archive.read("detectron2/user.py") == b"from detectron2 import __version__\n"
        assert (
            "Name: detectron2\nVersion: 0.6"
            in archive.read("detectron2-0.6.dist-info/METADATA").decode()
        )
        record = list(
            csv.reader(io.StringIO(archive.read("detectron2-0.6.dist-info/RECORD").decode()))
        )
    assert sorted(row[0] for row in record) == sorted(names)
    assert not any(name.startswith("LabGym") for name in names)


def test_pip_sees_the_repacked_wheel(labgym, tmp_path):
    wheel = repack_wheel(labgym, tmp_path / "work")
    target = tmp_path / "site"
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "install",
            "-q",
            "--no-deps",
            "--no-index",
            "--target",
            str(target),
            str(wheel),
        ],
        check=True,
    )
    code = "import detectron2, importlib.metadata as m; print(detectron2.__file__, m.version('detectron2'))"
    printed = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(target)!r}); {code}"],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert printed.split() == [str(target / "detectron2" / "__init__.py"), "0.6"]


def test_importing_the_package_without_detectron2_names_the_command():
    code = "import sys; sys.modules['detectron2'] = None\ntry:\n import salience_detr\nexcept ImportError as e: print(e)"
    printed = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    assert "tools/install_detectron2.py" in printed
