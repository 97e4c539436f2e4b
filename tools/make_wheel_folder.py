#!/usr/bin/env python
"""Make a folder of wheels for a GPU machine without a network that has PyTorch and little else.

    python tools/make_wheel_folder.py [--output output/wheels] [--python 3.12] [NAME[==VERSION] ...]

The folder holds what salience_detr needs and an image made for PyTorch seldom has: detectron2 (the
pure-Python copy), fvcore, iopath, omegaconf, hydra-core, pycocotools, and what they need. Name what
your machine lacks besides: timm, opencv-python-headless, scipy, tensorboard, ... On the machine,
tools/gpu_suite.sh installs the folder aside, or:

    python3 -m pip install --no-index --no-deps --target DIR output/wheels/*.whl

The versions are those of this environment where it has them, so that they are tested together.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import shutil
import sys
import tempfile
from pathlib import Path

from salience_detr.cli.install_detectron2 import (
    WHEEL_OPTIONS,
    WHEEL_REQUIREMENT,
    WHEEL_SHA256,
    SourceError,
    extract_package,
    pip,
    verify_sha256,
)

# Each is small; PyTorch's own images have the rest of pyproject.toml, or bring it with PyTorch.
NAMES = (
    "antlr4-python3-runtime",
    "cloudpickle",
    "fvcore",
    "hydra-core",
    "iopath",
    "omegaconf",
    "portalocker",
    "pycocotools",
    "tabulate",
    "termcolor",
    "yacs",
)
# manylinux2014 is 2_17; pip takes each name for itself.
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux_2_24_x86_64",
             "manylinux_2_17_x86_64", "manylinux2014_x86_64", "manylinux1_x86_64")  # fmt: skip
MEBIBYTES = 64  # more is often too much to carry


def requirement(name: str) -> str:
    """Return a package with the version that is installed here, if one is."""
    if "=" in name:
        return name
    try:
        return f"{name}=={importlib.metadata.version(name)}"
    except importlib.metadata.PackageNotFoundError:
        return name


def fetch(name: str, folder: Path, python: str) -> None:
    """Put the wheel of a package into a folder; a source archive is built, if it is pure Python.

    Raises:
        SourceError: there is no wheel for this Python, and none that runs everywhere can be built.
    """
    wanted = requirement(name)
    options = ["--no-deps", "--only-binary=:all:", "--python-version", python]
    for platform in PLATFORMS:
        options += ["--platform", platform]
    try:
        pip("download", *options, "-d", str(folder), wanted, action=f"downloading {wanted}")
        return
    except SourceError:
        pass

    # Older projects have no wheels on the index.
    with tempfile.TemporaryDirectory() as temporary:
        words = ("--no-deps", "--no-binary", name, "-w", temporary)
        pip("wheel", *words, wanted, action=f"building {wanted}")
        (wheel,) = Path(temporary).glob("*.whl")
        if not wheel.name.endswith("-none-any.whl"):
            raise SourceError(f"{wheel.name} is for this machine only; there is none for {python}")
        shutil.copy(wheel, folder)


def fetch_detectron2(folder: Path) -> None:
    """Put the wheel of detectron2's pure-Python copy into a folder."""
    with tempfile.TemporaryDirectory() as name:
        temporary = Path(name)
        action = f"downloading {WHEEL_REQUIREMENT}"
        pip("download", *WHEEL_OPTIONS, "-d", name, WHEEL_REQUIREMENT, action=action)
        (wheel,) = temporary.glob("*.whl")
        verify_sha256(wheel, WHEEL_SHA256)
        extract_package(wheel, temporary / "source")
        words = ("--no-deps", "-w", str(folder), str(temporary / "source"))
        pip("wheel", *words, action="building the copy of detectron2")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    add = parser.add_argument
    add("names", nargs="*", metavar="NAME", help="packages besides the usual ones")
    add("--output", type=Path, default=Path("output/wheels"), help="(default: output/wheels)")
    add("--python", default="3.12", help="version of the machine's Python (default: 3.12)")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    try:
        # Two versions of one package would end the installation.
        args.output.mkdir(parents=True, exist_ok=True)
        for wheel in args.output.glob("*.whl"):
            wheel.unlink()
        for name in (*NAMES, *args.names):
            print(name, flush=True)
            fetch(name, args.output, args.python)
        print("detectron2", flush=True)
        fetch_detectron2(args.output)
    except (OSError, SourceError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1

    wheels = sorted(args.output.glob("*.whl"))
    mebibytes = sum(path.stat().st_size for path in wheels) / 2**20
    print(f"{args.output}: {len(wheels)} wheels, {mebibytes:.1f} MiB")
    if mebibytes > MEBIBYTES:
        print(f"warning: that is more than {MEBIBYTES} MiB", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
