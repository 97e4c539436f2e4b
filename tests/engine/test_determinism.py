"""Deterministic algorithms: which settings, and what is named."""

from __future__ import annotations

import os
import warnings
from types import SimpleNamespace

import pytest
import torch

from salience_detr.engine.determinism import DeterminismHook, use_deterministic_algorithms


@pytest.fixture(autouse=True)
def restored(monkeypatch):
    """Give PyTorch its settings back."""
    cudnn = torch.backends.cudnn
    before = (cudnn.deterministic, cudnn.benchmark)
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    yield
    torch.use_deterministic_algorithms(False)
    cudnn.deterministic, cudnn.benchmark = before


def test_the_settings_are_those_of_pytorch():
    use_deterministic_algorithms()
    assert torch.are_deterministic_algorithms_enabled()
    assert torch.is_deterministic_algorithms_warn_only_enabled()
    assert torch.backends.cudnn.deterministic and not torch.backends.cudnn.benchmark
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"


@pytest.mark.parametrize(
    ("device", "operations", "expected"),
    [
        ("cpu", [], "all operations are deterministic"),
        ("cuda", [], "may differ: the backward pass of multi-scale deformable attention"),
        ("cpu", ["kthvalue", "kthvalue", "put_"], "so that two runs may differ: kthvalue, put_"),
    ],
)
def test_what_is_not_deterministic_is_named_after_the_first_step(
    device, operations, expected, caplog
):
    hook = DeterminismHook(torch.device(device))
    hook.trainer = SimpleNamespace(iter=3, start_iter=3)
    caplog.set_level("INFO")
    with warnings.catch_warnings(record=True) as others:
        warnings.simplefilter("always")
        hook.before_step()
        for name in operations:
            warnings.warn(f"{name} does not have a deterministic implementation, ...", stacklevel=1)
        warnings.warn("something else", stacklevel=1)
        hook.after_step()
        hook.trainer.iter = 4
        hook.before_step()
        hook.after_step()

    assert expected in caplog.text and len(caplog.records) == 1
    assert [str(warning.message) for warning in others] == ["something else"]
