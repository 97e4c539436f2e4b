"""One small model, recorded once for all tests of its exports."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from salience_detr import Predictor
from salience_detr.data import register_surface_defects
from salience_detr.export import DetectorInfo
from salience_detr.export.onnx import export_onnx
from salience_detr.export.program import export_program, save_program

CONFIG = Path(__file__).resolve().parents[1] / "configs" / "micro.py"


@pytest.fixture(scope="session")
def predictor(surface_root):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DETECTRON2_DATASETS", str(surface_root))
        register_surface_defects()
        torch.manual_seed(1)
        return Predictor(CONFIG, None, device="cpu")


@pytest.fixture(scope="session")
def program(predictor):
    return export_program(predictor)


@pytest.fixture(scope="session")
def exported(predictor, program, tmp_path_factory):
    """A folder with model.onnx and model.pt2."""
    folder = tmp_path_factory.mktemp("exported")
    info = DetectorInfo.from_predictor(predictor)
    export_onnx(program, folder / "model.onnx", info, simplify=True)
    save_program(program, folder / "model.pt2", info)
    return folder
