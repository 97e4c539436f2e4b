"""The proof that training works on real images: the model learns 16 of them by heart."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from salience_detr.cli import train as train_net

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.slow
def test_sixteen_coco_images_are_learned_by_heart(shared, tmp_path, monkeypatch):
    source = shared("data/coco128")
    content = json.loads((source / "annotations" / "instances_train2017.json").read_text())
    content["images"] = content["images"][:16]
    kept = {image["id"] for image in content["images"]}
    content["annotations"] = [
        x for x in content["annotations"] if x["image_id"] in kept and not x.get("iscrowd")
    ]
    (tmp_path / "sixteen.json").write_text(json.dumps(content))
    monkeypatch.setenv("OVERFIT_JSON", str(tmp_path / "sixteen.json"))
    monkeypatch.setenv("OVERFIT_IMAGES", str(source / "train2017"))
    output = tmp_path / "out"
    assert (
        train_net.run(
            ["--config-file", str(ROOT / "tests/configs/overfit.py"), f"train.output_dir={output}"]
        )
        == 0
    )
    metrics = [json.loads(line) for line in (output / "metrics.json").read_text().splitlines()]
    assert max(line.get("bbox/AP50", 0) for line in metrics) > 80
