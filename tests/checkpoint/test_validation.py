"""Weights are validated before any of them is loaded."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from salience_detr.checkpoint import CheckpointError, load_weights, save_weights, start_from

CASES = [
    ({"weight": torch.full((2, 2), torch.nan)}, r"holds NaN or infinite values in weight: "),
    ({"bias": torch.tensor([1.0, -torch.inf])}, r"holds NaN or infinite values in bias: "),
    ({"bias": torch.tensor([torch.nan, 0], dtype=torch.float16)}, "infinite values in bias"),
    ({"bias": torch.tensor([torch.nan, 0]).to(torch.float8_e5m2)}, "infinite values in bias"),
    ({"weight": torch.zeros(2, 2, dtype=torch.int8)}, "1 of another kind: weight: torch.int8"),
    ({"weight": torch.zeros(2, 2, dtype=torch.complex64)}, "1 of another kind: weight"),
    ({"weight": torch.eye(2).to_sparse()}, "weight is a tensor of the layout torch.sparse_coo"),
    ({"weight": torch.empty(2, 2, device="meta")}, "weight is a tensor without values"),
    ({"weight": [[1.0, 2.0], [3.0, 4.0]]}, "weight is of the type list, no dense tensor"),
    ({"bias": None}, "bias is of the type NoneType"),
    ({5: torch.zeros(2)}, "the name 5 is no text"),
    ({("a", "b"): torch.zeros(2)}, "is no text"),
]


@pytest.mark.parametrize("load", [load_weights, start_from])
@pytest.mark.parametrize("key", ["model", "ema", None])
@pytest.mark.parametrize(("change", "message"), CASES)
def test_what_cannot_be_weights_is_refused_by_name(tmp_path, load, key, change, message):
    model = nn.Linear(2, 2)
    before = {name: x.clone() for name, x in model.state_dict().items()}
    state = {**nn.Linear(2, 2).state_dict(), **change}
    torch.save({key: state} if key else state, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=message):
        load(model, tmp_path / "a.pth")
    torch.testing.assert_close(dict(model.state_dict()), before, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_another_precision_are_loaded(tmp_path, dtype):
    state = {name: x.to(dtype) for name, x in nn.Linear(2, 2).state_dict().items()}
    save_weights(state, tmp_path / "a.safetensors")
    model = nn.Linear(2, 2)
    load_weights(model, tmp_path / "a.safetensors")
    assert torch.equal(model.weight, state["weight"].float())


def test_a_mask_of_the_model_may_be_infinite(tmp_path):
    model = nn.Linear(2, 2)
    model.register_buffer("mask", torch.tensor([0, -torch.inf]))
    torch.save(model.state_dict(), tmp_path / "a.pth")
    load_weights(model, tmp_path / "a.pth")


def batch_norm_state(steps: torch.Tensor) -> dict[str, torch.Tensor]:
    return {**nn.BatchNorm2d(2).state_dict(), "num_batches_tracked": steps}


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_whole_floating_numbers_are_taken_for_integers(tmp_path, dtype):
    torch.save(batch_norm_state(torch.tensor(7, dtype=dtype)), tmp_path / "a.pth")
    model = nn.BatchNorm2d(2)
    load_weights(model, tmp_path / "a.pth")
    assert model.num_batches_tracked == 7


@pytest.mark.parametrize("steps", [7.5, torch.nan, torch.inf])
def test_broken_counters_are_refused(tmp_path, steps):
    torch.save(batch_norm_state(torch.tensor(steps)), tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match="num_batches_tracked"):
        load_weights(nn.BatchNorm2d(2), tmp_path / "a.pth")
