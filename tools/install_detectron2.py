#!/usr/bin/env python
"""Install detectron2, which is not on the package index, from the first source that works.

In this order: the one that is importable already; what DETECTRON2_SOURCE names (a path or URL that pip can install);
the official Git repository at a pinned commit; the pure-Python copy of detectron2 0.6 that the labgym wheel on the
package index contains.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

GIT_REPOSITORY = "https://github.com/facebookresearch/detectron2.git"
GIT_COMMIT = "e0ec4e189d438848521aee7926f9900e114229f5"
WHEEL_REQUIREMENT = "labgym==3.1.2"
WHEEL_SHA256 = "a2900cff8a3fb508e1975f19b5f9abd9f261966db87b0c332697fb4138c1cb2b"
WHEEL_PACKAGE = "LabGym/detectron2"
# The labgym wheel asks for Python 3.10; the copy in it runs on later ones too.
WHEEL_PYTHON = "3.10"
VERSION = "0.6"
REQUIREMENTS = (
    "Pillow>=7.1", "matplotlib", "pycocotools>=2.0.2", "termcolor>=1.1", "yacs>=0.1.8", "tabulate", "cloudpickle",
    "tqdm>4.29.0", "tensorboard", "fvcore>=0.1.5", "iopath>=0.1.7", "omegaconf>=2.1", "hydra-core>=1.1", "packaging",
)  # fmt: skip

Runner = Callable[..., "subprocess.CompletedProcess[str]"]


class SourceFailed(RuntimeError):
    """A source that detectron2 could not be installed from."""


@dataclass(frozen=True)
class Installer:
    """Installs into the environment of the running interpreter.

    Attributes:
        run: how commands are run, as ``subprocess.run``.
        environ: environment variables.
        wheel_sha256: what the labgym wheel must hash to.
    """

    run: Runner = subprocess.run
    environ: Mapping[str, str] = field(default_factory=lambda: os.environ)
    wheel_sha256: str = WHEEL_SHA256

    def install(self) -> str:
        """Take the first source that works.

        Returns:
            What was taken, in words.

        Raises:
            SourceFailed: nothing worked; the message lists every source and the remedy.
        """
        if importlib.util.find_spec("detectron2") is not None:
            return f"detectron2 {installed_version()} is importable already"
        if source := self.environ.get("DETECTRON2_SOURCE"):
            # What the user asked for is not replaced by something else.
            self.pip_install("--no-build-isolation", source, what=f"DETECTRON2_SOURCE={source}")
            return f"detectron2 from DETECTRON2_SOURCE={source}"
        failures = []
        for name, attempt in (("Git", self.install_from_git), ("wheel", self.install_from_wheel)):
            try:
                return attempt()
            except SourceFailed as error:
                failures.append(f"{name}: {error}")
                print(f"passed over {name}: {error}", flush=True)
        raise SourceFailed(
            "detectron2 could not be installed.\n  "
            + "\n  ".join(failures)
            + "\nDownload detectron2 where there is a network and set DETECTRON2_SOURCE to its folder or archive."
        )

    def install_from_git(self) -> str:
        """The official repository at the pinned commit; asked first whether it can be reached at all."""
        environ = {**self.environ, "GIT_TERMINAL_PROMPT": "0"}
        try:
            probe = self.run(
                ["git", "ls-remote", GIT_REPOSITORY, "HEAD"],
                env=environ,
                timeout=20,
                capture_output=True,
                text=True,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise SourceFailed(
                f"{GIT_REPOSITORY} cannot be reached ({type(error).__name__})"
            ) from error
        if probe.returncode:
            reason = (probe.stderr or "").strip().splitlines() or ["no reason given"]
            raise SourceFailed(f"{GIT_REPOSITORY} cannot be reached ({reason[-1]})")
        self.pip_install(
            "--no-build-isolation", f"git+{GIT_REPOSITORY}@{GIT_COMMIT}", what="the Git repository"
        )
        return f"detectron2 from {GIT_REPOSITORY} at {GIT_COMMIT[:10]}"

    def install_from_wheel(self) -> str:
        """The pure-Python copy inside the labgym wheel, repacked as a wheel of its own."""
        with tempfile.TemporaryDirectory() as folder:
            arguments = [
                "download",
                "--quiet",
                "--no-deps",
                "--only-binary=:all:",
                "--python-version",
                WHEEL_PYTHON,
            ]
            self.pip(
                *arguments, "-d", folder, WHEEL_REQUIREMENT, what=f"downloading {WHEEL_REQUIREMENT}"
            )
            downloaded = next(Path(folder).glob("*.whl"), None)
            if downloaded is None:
                raise SourceFailed(f"pip downloaded no wheel for {WHEEL_REQUIREMENT}")
            verify_sha256(downloaded, self.wheel_sha256)
            wheel = repack_wheel(downloaded, Path(folder) / "repacked")
            self.pip_install("--no-deps", str(wheel), what="the repacked wheel")
        return (
            f"detectron2 {VERSION}, the pure-Python copy in {WHEEL_REQUIREMENT} (no compiled parts)"
        )

    def pip_install(self, *arguments: str, what: str) -> None:
        self.pip("install", *arguments, what=f"installing {what}")

    def pip(self, *arguments: str, what: str) -> None:
        """Run pip; its output is shown only if it fails."""
        command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
        result = self.run(command, env=dict(self.environ), capture_output=True, text=True)
        if result.returncode:
            lines = (result.stderr or result.stdout or "").strip().splitlines() or [
                "no reason given"
            ]
            raise SourceFailed(f"{what} failed: {lines[-1]}")


def installed_version() -> str:
    """The version of the importable detectron2."""
    try:
        return importlib.metadata.version("detectron2")
    except importlib.metadata.PackageNotFoundError:
        return "(without metadata)"


def verify_sha256(path: Path, expected: str) -> None:
    """Raise SourceFailed unless the file hashes to ``expected``."""
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != expected:
        raise SourceFailed(
            f"{path.name} has sha256 {found}, not {expected}; it is not the file that was tested"
        )


def repack_wheel(source: Path, folder: Path) -> Path:
    """A wheel ``detectron2-0.6`` with metadata of its own from the copy inside another wheel."""
    tree = folder / "tree"
    with zipfile.ZipFile(source) as archive:
        names = [name for name in archive.namelist() if name.startswith(f"{WHEEL_PACKAGE}/")]
        if f"{WHEEL_PACKAGE}/__init__.py" not in names:
            raise SourceFailed(f"{source.name} holds no {WHEEL_PACKAGE}")
        archive.extractall(tree, names)
    package = tree / "detectron2"
    (tree / WHEEL_PACKAGE).rename(package)
    shutil.rmtree(tree / WHEEL_PACKAGE.split("/")[0])
    module = WHEEL_PACKAGE.replace("/", ".")
    for path in package.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        if module in text:
            path.write_text(text.replace(module, "detectron2"), encoding="utf-8")
    info = tree / f"detectron2-{VERSION}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(metadata_text(), encoding="utf-8")
    (info / "WHEEL").write_text(
        "Wheel-Version: 1.0\nGenerator: salience_detr\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    )
    return pack_wheel(tree, info, folder / f"detectron2-{VERSION}-py3-none-any.whl")


def metadata_text() -> str:
    lines = [
        "Metadata-Version: 2.1",
        "Name: detectron2",
        f"Version: {VERSION}",
        f"Summary: Pure-Python copy of detectron2 {VERSION}, taken from {WHEEL_REQUIREMENT}",
        "Home-page: https://github.com/facebookresearch/detectron2",
        "License: Apache-2.0",
        *(f"Requires-Dist: {requirement}" for requirement in REQUIREMENTS),
    ]
    return "\n".join(lines) + "\n"


def pack_wheel(tree: Path, info: Path, wheel: Path) -> Path:
    """Zip a tree with a RECORD of its files."""
    record = []
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(p for p in tree.rglob("*") if p.is_file()):
            name, content = path.relative_to(tree).as_posix(), path.read_bytes()
            digest = (
                base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
            )
            record.append(f"{name},sha256={digest},{len(content)}")
            archive.writestr(name, content)
        record_name = f"{info.name}/RECORD"
        archive.writestr(record_name, "\n".join([*record, f"{record_name},,"]) + "\n")
    return wheel


def main(argv: Sequence[str] | None = None) -> int:
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args(argv)
    try:
        print(Installer().install())
    except SourceFailed as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
