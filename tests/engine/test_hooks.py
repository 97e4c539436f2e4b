"""What hooks do between the steps."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from timm.utils import ModelEmaV3
from torch import nn

from salience_detr.engine.hooks import AverageHook


def test_the_average_follows_fast_at_first_and_slowly_later():
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    average = ModelEmaV3(model, decay=0.75, use_warmup=True)
    hook = AverageHook(average, model)
    nn.init.ones_(model.weight)
    seen = []
    for iteration in (0, 2, 100):
        hook.trainer = SimpleNamespace(iter=iteration)
        hook.after_step()
        seen.append(average.module.weight.item())
        with torch.no_grad():
            model.weight += 1
    # Kept of the average: nothing at first, 1 - 2^(-2/3) = 0.37004 at the third step, 0.75 from then on.
    third = 0.37004 * 1 + 0.62996 * 2
    assert seen == pytest.approx([1, third, 0.75 * third + 0.25 * 3], abs=1e-4)
