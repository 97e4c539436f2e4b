"""Fixtures of all tests: one thread, real data beside the project, and a model small enough."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances

ROOT = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("SALIENCE_DETR_SHARED") or ROOT.parent / "shared")
os.environ.setdefault("OMP_NUM_THREADS", "1")
logging.raiseExceptions = False  # detectron2 keeps handlers on streams that pytest closes


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the longest tests, of whole trainings, first: no process waits for another at the end."""
    items.sort(key=lambda item: not item.path.name.startswith("test_train_net"))


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """Sums come out the same in every run."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def fixed_seed() -> None:
    torch.manual_seed(0)
    np.random.seed(0)


@pytest.fixture(autouse=True)
def fresh_loggers() -> Iterator[None]:
    """Forget what a run sets: its handlers write to closed streams, and caplog misses records."""
    yield
    for name in ("detectron2", "fvcore", "salience_detr"):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
        logger.setLevel(logging.NOTSET)
    assert not logging.root.manager.disable, "the messages of later tests would be lost"


@pytest.fixture(scope="session")
def shared() -> Callable[[str], Path]:
    """Finds a file or folder of the real data beside the project, or skips the test."""

    def find(name: str) -> Path:
        path = SHARED / name
        if not path.exists():
            pytest.skip(f"needs {name} in {SHARED}")
        return path

    return find


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> torch.device:
    """The GPU of the tests with the marker ``gpu``, which are skipped without one.

    SALIENCE_DETR_TEST_GPU=cpu lets the CPU stand for it, to try the tests themselves.
    """
    device = torch.device(os.environ.get("SALIENCE_DETR_TEST_GPU") or "cuda")
    if device.type == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a GPU")

    # PyTorch's convolutions have 10 bits of mantissa there, by default.
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    return device


@pytest.fixture
def micro_config() -> str:
    """A LazyConfig of a model with a few thousand parameters for 64-pixel images."""
    return str(ROOT / "tests" / "configs" / "micro.py")


@pytest.fixture(scope="session")
def surface_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for DETECTRON2_DATASETS with 12 + 6 surface-defect images of 64 pixels."""
    from salience_detr.data.surface import generate_surface_defects

    root = tmp_path_factory.mktemp("datasets")
    for split, count in (("train", 12), ("val", 6)):
        generate_surface_defects(
            root / "surface_defects",
            split=split,
            num_images=count,
            image_size=(64, 64),
            progress=False,
        )
    return root


@pytest.fixture
def surface_data(surface_root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Register the small surface-defect images, by the environment also in child processes."""
    from salience_detr.data import register_surface_defects

    monkeypatch.setenv("DETECTRON2_DATASETS", str(surface_root))
    register_surface_defects()
    return surface_root / "surface_defects"


def make_input(height: int, width: int, boxes: list[list[float]], classes: list[int]) -> dict:
    """A model input with a random image and ground truth in absolute xyxy."""
    instances = Instances((height, width))
    instances.gt_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    instances.gt_classes = torch.tensor(classes, dtype=torch.int64)
    image = torch.randint(0, 256, (3, height, width), dtype=torch.uint8)
    return {"image": image, "instances": instances, "height": height, "width": width}


@pytest.fixture(name="make_input")
def make_input_fixture() -> Callable[..., dict]:
    return make_input
