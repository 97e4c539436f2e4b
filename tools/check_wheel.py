#!/usr/bin/env python
"""Install a wheel of the project into an empty environment, and use it from another folder.

    python tools/check_wheel.py

The environment gets everything from the package index but PyTorch, which is several gigabytes: the
environment that runs this lends it, with what it needs. The wheel itself installs detectron2.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import re
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LENT = ("torch", "torchvision")

BEFORE_DETECTRON2 = """
try:
    from salience_detr.modeling import SalienceDETR
except ImportError as error:
    assert "python -m salience_detr install-detectron2" in str(error), error
else:
    raise SystemExit("detectron2 is there already")
"""
DETECTION = """
import sys
from pathlib import Path
import salience_detr
from salience_detr import Predictor, model_zoo
from salience_detr.layers.operator import BUILT_AHEAD, load_operator

package = Path(salience_detr.__file__).parent
assert package.is_relative_to(sys.prefix), package
for name in model_zoo.list_models():
    assert Path(model_zoo.get_config_file(name)).is_relative_to(package)
    model_zoo.get_config(name)
assert any(path.is_file() for path in BUILT_AHEAD.rglob("*")) and load_operator()

predictor = Predictor.from_pretrained("neu_det_r18", device="cpu", score_threshold=0.5)
assert "crazing" in predictor.class_names
predictor(sys.argv[1])
name = "surface_defects_tiny_plus"
predictor = Predictor.from_pretrained(name, device="cpu", score_threshold=0.5)
assert len(predictor(sys.argv[1]))
"""


def lend(names: tuple[str, ...], folder: Path) -> None:
    """Link distributions, and all that they require, into a folder of an environment."""
    waiting = list(names)
    lent: set[str] = set()
    while waiting:
        name = re.sub(r"[-_.]+", "-", waiting.pop()).lower()
        if name in lent:
            continue
        try:
            distribution = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:  # of another platform, or of an extra
            continue

        lent.add(name)
        link_files(distribution, folder)
        for requirement in distribution.requires or ():
            if "extra ==" not in requirement:
                waiting.append(re.split(r"[^\w.-]", requirement, maxsplit=1)[0])


def link_files(distribution: importlib.metadata.Distribution, folder: Path) -> None:
    """Link what a distribution has in site-packages into a folder.

    Packages are linked as a whole. Folders that several distributions share, as nvidia/, are made,
    and what is in them is linked.
    """
    for file in distribution.files or ():
        if ".." in file.parts or "__pycache__" in file.parts:
            continue

        part = Path(file.parts[0])
        source = Path(str(distribution.locate_file(part)))
        if not (source / "__init__.py").exists():
            part = Path(file)
            source = Path(str(distribution.locate_file(file)))

        target = folder / part
        target.parent.mkdir(parents=True, exist_ok=True)
        if not target.exists():
            target.symlink_to(source.resolve())


def run(step: str, *command: str | Path, cwd: Path) -> None:
    """Run a command, whose output is shown only if it fails, and print its time.

    Raises:
        SystemExit: it failed.
    """
    start = time.monotonic()
    words = [str(word) for word in command]
    stdin = subprocess.DEVNULL
    result = subprocess.run(words, cwd=cwd, stdin=stdin, capture_output=True, text=True)
    if result.returncode:
        sys.exit(f"{result.stdout}{result.stderr}\nerror: {step} failed: {' '.join(words[:6])}")
    print(f"{time.monotonic() - start:5.0f} s  {step}", flush=True)


def check(folder: Path) -> None:
    """Build the wheel and try it, below an empty folder."""
    environment = folder / "environment"
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()
    venv.create(environment, with_pip=True)
    python = environment / "bin" / "python"
    site_packages = next((environment / "lib").glob("python*/site-packages"))
    lend(LENT, site_packages)

    # Its build needs nothing but setuptools, and the operator's the lent PyTorch.
    pip = (python, "-m", "pip", "--disable-pip-version-check", "--quiet")
    install = (*pip, "install", "-c", ROOT / "constraints.txt")
    run("setuptools and ninja", *install, "setuptools", "ninja", cwd=elsewhere)
    build = (*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", folder, ROOT)
    run("build of the wheel", *build, cwd=elsewhere)
    (wheel,) = folder.glob("salience_detr-*.whl")
    run("installation with what it needs", *install, wheel, cwd=elsewhere)

    run("an import without detectron2", python, "-c", BEFORE_DETECTRON2, cwd=elsewhere)
    command = (python, "-m", "salience_detr")
    run("installation of detectron2", *command, "install-detectron2", cwd=elsewhere)

    data = elsewhere / "data"
    generate = ("make", "surface-defects", "--output", data, "--splits", "val", "--num-val", "2")
    run("two images", *command, *generate, cwd=elsewhere)
    image = data / "val" / "000001.jpg"
    run("Predictor.from_pretrained", python, "-c", DETECTION, image, cwd=elsewhere)

    # The console command, with a config by its name.
    script = environment / "bin" / "salience-detr"
    predict = ("predict", "--weights", "neu_det_r18", "--input", image, "--output", "drawn")
    run("salience-detr predict", script, *predict, cwd=elsewhere)
    words = ("--config-file", "surface_defects_tiny", "--weights", "surface_defects_tiny")
    own = ("--val-json", data / "annotations" / "val.json", "--val-images", data / "val")
    run("salience-detr val", script, "val", *words, *own, "--output", "evaluated", cwd=elsewhere)


def main() -> int:
    argparse.ArgumentParser(description=__doc__).parse_args()
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="salience_detr_wheel_") as name:
        check(Path(name).resolve())

    print(f"the wheel works in an empty environment ({time.monotonic() - start:.0f} s)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
