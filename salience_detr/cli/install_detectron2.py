"""Install detectron2, which is not on the package index, from the first source that works.

The sources are, in this order: the detectron2 that is importable already; DETECTRON2_SOURCE, a path
or URL that pip can install; the official Git repository at a pinned commit; the pure-Python copy of
detectron2 0.6 in the labgym wheel on the package index.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import importlib.util
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

GIT_REPOSITORY = "https://github.com/facebookresearch/detectron2.git"
GIT_COMMIT = "e0ec4e189d438848521aee7926f9900e114229f5"
WHEEL_REQUIREMENT = "labgym==3.1.2"
WHEEL_SHA256 = "a2900cff8a3fb508e1975f19b5f9abd9f261966db87b0c332697fb4138c1cb2b"
WHEEL_PACKAGE = "LabGym/detectron2"
# The labgym wheel asks for Python 3.10; the copy in it runs on later ones too.
WHEEL_OPTIONS = ("--no-deps", "--only-binary=:all:", "--python-version", "3.10")
VERSION = "0.6"
PYPROJECT = f"""
[project]
name = "detectron2"
version = "{VERSION}"
description = "Pure-Python copy of detectron2 {VERSION}, taken from {WHEEL_REQUIREMENT}"
license = {{text = "Apache-2.0"}}
urls = {{Homepage = "https://github.com/facebookresearch/detectron2"}}
dependencies = [
    "Pillow>=7.1", "matplotlib", "pycocotools>=2.0.2", "termcolor>=1.1", "yacs>=0.1.8", "tabulate",
    "cloudpickle", "tqdm>4.29.0", "tensorboard", "fvcore>=0.1.5", "iopath>=0.1.7", "omegaconf>=2.1",
    "hydra-core>=1.1", "packaging",
]

[build-system]
requires = ["setuptools>=62.3", "wheel"]
build-backend = "setuptools.build_meta"

[tool.setuptools]
packages.find.include = ["detectron2*"]
package-data = {{detectron2 = ["**/*"]}}
"""


class SourceError(RuntimeError):
    """Source from which detectron2 could not be installed."""


def install() -> str:
    """Install detectron2 into the environment of the running interpreter.

    Returns:
        The source, in words.

    Raises:
        SourceError: no source works; the message lists every source and the remedy.
    """
    if importlib.util.find_spec("detectron2") is not None:
        return f"detectron2 {installed_version()} is importable already"

    # The source that the user asks for is not replaced by another one.
    if source := os.environ.get("DETECTRON2_SOURCE"):
        name = f"DETECTRON2_SOURCE={source}"
        pip("install", "--no-build-isolation", source, action=f"installing {name}")
        return f"detectron2 from {name}"

    failures = []
    for name, install_from_source in (("Git", install_from_git), ("wheel", install_from_wheel)):
        try:
            return install_from_source()
        except SourceError as error:
            failures.append(f"  {name}: {error}")
            print(f"skipped {name}: {error}", flush=True)

    reasons = "\n".join(failures)
    raise SourceError(
        f"detectron2 could not be installed.\n{reasons}\nDownload detectron2 where there is a "
        "network and set DETECTRON2_SOURCE to its folder or archive."
    )


def installed_version() -> str:
    """Return the version of the importable detectron2."""
    try:
        return importlib.metadata.version("detectron2")
    except importlib.metadata.PackageNotFoundError:
        return "(without metadata)"


def install_from_git() -> str:
    """Install the official repository at the pinned commit, if it can be reached."""
    unreachable = f"{GIT_REPOSITORY} cannot be reached"
    try:
        # Without a network pip would wait for minutes; and Git must not ask for a password.
        probe = subprocess.run(
            ["git", "ls-remote", GIT_REPOSITORY, "HEAD"],
            env={**os.environ, "GIT_TERMINAL_PROMPT": "0"},
            timeout=20,
            capture_output=True,
            text=True,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SourceError(f"{unreachable} ({type(error).__name__})") from error
    if probe.returncode:
        raise SourceError(f"{unreachable} ({last_line(probe.stderr)})")

    # detectron2's set-up imports the torch that is installed.
    source = f"git+{GIT_REPOSITORY}@{GIT_COMMIT}"
    pip("install", "--no-build-isolation", source, action="installing the Git repository")
    return f"detectron2 from {GIT_REPOSITORY} at {GIT_COMMIT[:10]}"


def install_from_wheel() -> str:
    """Install the pure-Python copy in the labgym wheel as a package of its own."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        action = f"downloading {WHEEL_REQUIREMENT}"
        pip("download", *WHEEL_OPTIONS, "-d", name, WHEEL_REQUIREMENT, action=action)
        wheel = next(folder.glob("*.whl"), None)
        if wheel is None:
            raise SourceError(f"pip downloaded no wheel for {WHEEL_REQUIREMENT}")
        verify_sha256(wheel, WHEEL_SHA256)

        extract_package(wheel, folder / "source")
        pip("install", "--no-deps", str(folder / "source"), action="installing the copy")
    return f"detectron2 {VERSION}, the pure-Python copy in {WHEEL_REQUIREMENT} (no compiled parts)"


def verify_sha256(path: Path, expected: str) -> None:
    """Raise SourceError unless the file hashes to ``expected``."""
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != expected:
        raise SourceError(f"{path.name} has sha256 {digest}: it is not the file that was tested")


def extract_package(wheel: Path, folder: Path) -> None:
    """Extract the copy of detectron2 in a wheel to a folder that pip can install."""
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if name.startswith(f"{WHEEL_PACKAGE}/")]
        if f"{WHEEL_PACKAGE}/__init__.py" not in names:
            raise SourceError(f"{wheel.name} holds no {WHEEL_PACKAGE}")
        archive.extractall(folder, names)

    package = (folder / WHEEL_PACKAGE).rename(folder / "detectron2")
    (folder / "pyproject.toml").write_text(PYPROJECT, encoding="utf-8")

    # Its modules import each other by the name in labgym.
    for path in package.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        text = text.replace(WHEEL_PACKAGE.replace("/", "."), "detectron2")
        path.write_text(text, encoding="utf-8")


def pip(*arguments: str, action: str) -> None:
    """Run pip, whose output is shown only if it fails.

    Raises:
        SourceError: pip failed; the message has ``action`` and the last line of the output.
    """
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise SourceError(f"{action} failed: {last_line(result.stderr or result.stdout)}")


def last_line(output: str) -> str:
    """Return the last line of a command's output, in which the reason stands."""
    return output.strip().rpartition("\n")[-1] or "no reason given"


def parse_args(argv: Sequence[str] | None = None, *, prog: str | None = None) -> argparse.Namespace:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog=prog, description=__doc__, formatter_class=formatter)
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> int:
    """Install detectron2, and print its source, or why no source works."""
    try:
        print(install())
    except SourceError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    return run(parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
