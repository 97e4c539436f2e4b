"""The compiled copies of the shipped models: the same detections, and a quick second start."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torch._dynamo.utils import counters

from salience_detr import Predictor
from salience_detr.export.verification import compare

pytestmark = pytest.mark.slow

START = """if True:
    import json, sys
    import numpy as np
    from torch._dynamo.utils import counters
    from salience_detr import Predictor

    predictor = Predictor(sys.argv[1], None, device="cpu", optimize="compiled")
    predictor(np.zeros((64, 64, 3), np.uint8))
    print(json.dumps(counters["inductor"]))
"""


@pytest.mark.parametrize("name", ["surface_defects_tiny", "neu_det_r18_plus"])
def test_the_compiled_copy_of_shipped_weights_detects_the_same_on_odd_sizes(
    name, surface_data, tmp_path, monkeypatch
):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    torch._dynamo.reset()
    counters.clear()
    plain = Predictor.from_pretrained(name, device="cpu", optimize="none")
    compiled = Predictor.from_pretrained(name, device="cpu", optimize="compiled")
    image = np.asarray(Image.open(surface_data / "val" / "000001.jpg"))
    for height, width in [(64, 64), (45, 59), (64, 41)]:
        difference = compare(plain(image[:height, :width]), compiled(image[:height, :width]))
        assert difference.detections > 0 and difference.unmatched == 0
        assert difference.score < 1e-5 and difference.box < 0.01

    # Beyond a limit of recompilations, PyTorch would quietly compute as if nothing was compiled.
    assert counters["stats"]["unique_graphs"] > 0
    assert not counters["recompile_limit"]


def test_the_next_process_takes_the_compiled_kernels_from_the_disk(
    micro_config, surface_data, tmp_path, monkeypatch
):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    counts = []
    kernels = []
    for _ in range(2):
        command = [sys.executable, "-W", "ignore", "-c", START, micro_config]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        counts.append(json.loads(done.stdout.splitlines()[-1]))
        kernels.append({path.name for path in tmp_path.rglob("*.so")})

    # The C++ compiler, which takes most of the time, has nothing to do.
    assert kernels[0] and kernels[0] == kernels[1]

    # Graphs whose weights are packed for oneDNN are not kept by PyTorch; the others are.
    first, second = counts
    assert first["fxgraph_cache_miss"] > 0 and "fxgraph_cache_hit" not in first
    assert second["fxgraph_cache_hit"] == first["fxgraph_cache_miss"]
    assert "fxgraph_cache_miss" not in second
