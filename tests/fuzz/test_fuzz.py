"""Damaged files through the programs' own functions: results or one clear error, no traceback.

The suite tries a tenth of them: FUZZ_FACTOR=20 tries 3,000 annotation files, 2,000 images and
500 checkpoints with other seeds.
"""

from __future__ import annotations

import os
import random
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import instantiate
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from salience_detr.checkpoint import CheckpointError, load_weights
from salience_detr.cli import check_dataset, evaluate_json
from salience_detr.config import load_config
from salience_detr.data import DetectionMapper, ImageReadError
from salience_detr.data.classes import ClassList
from salience_detr.data.coco_format import DatasetError
from salience_detr.data.datasets import load_dataset
from salience_detr.data.images import read_image
from salience_detr.engine.checkpointing import TrainingCheckpointer

from . import mutations

FACTOR = int(os.environ.get("FUZZ_FACTOR", "2"))
NUM_ANNOTATION_FILES = 150 * FACTOR
NUM_IMAGES = 100 * FACTOR
NUM_FLIPPED_PNGS = 150
NUM_CHECKPOINTS = 25 * FACTOR


def annotations() -> dict:
    """Return a data set of two classes; its images are made by :func:`image_folder`."""
    images = [
        {"id": i, "file_name": f"sub/{i}.png", "width": 50, "height": 40} for i in range(1, 5)
    ]
    boxes = [
        {"id": i, "image_id": 1 + i % 4, "category_id": 1 + i % 2, "iscrowd": 0, "area": 60 + i,
         "bbox": [i, 2, 10, 6 + i], "segmentation": [[i, 2, i + 10, 2, i + 10, 8, i, 8]]}
        for i in range(1, 9)
    ]  # fmt: skip
    categories = [{"id": 1, "name": "crack"}, {"id": 2, "name": "dent", "supercategory": "none"}]
    return {"images": images, "annotations": boxes, "categories": categories}


@pytest.fixture(scope="module")
def image_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    (folder / "sub").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (4, 40, 50, 3), dtype=np.uint8)
    for i in range(4):
        Image.fromarray(pixels[i]).save(folder / "sub" / f"{i + 1}.png")
    return folder


def unregister(name: str) -> None:
    if name in DatasetCatalog.list():
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def check_one_line(text: str) -> None:
    """Check what a program wrote on stderr after it had refused its input."""
    # A progress bar may stand before the error in its line.
    assert len(re.findall(r"(?m)(^|[ \]])error: ", text)) == 1, text
    assert "Traceback" not in text


@pytest.mark.parametrize("part", range(5))
def test_damaged_annotation_files_are_read_or_refused(part, image_folder, tmp_path, capsys):
    content = annotations()
    mapper = DetectionMapper(is_train=True, augmentations=[])
    path = tmp_path / "annotations.json"
    results = tmp_path / "results.json"
    results.write_text('[{"image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4], "score": 0.5}]')

    for seed in range(part * NUM_ANNOTATION_FILES // 5, (part + 1) * NUM_ANNOTATION_FILES // 5):
        path.write_bytes(mutations.mutate_annotations(content, random.Random(seed)))
        fixed = tmp_path / f"fixed{seed}.json"

        # What is refused is refused in one line; what --fix writes is then taken.
        code = check_dataset.main(
            [str(path), str(image_folder), "--workers", "0", "--fix", str(fixed)]
        )
        output = capsys.readouterr()
        if code == 2:
            check_one_line(output.err)
        for candidate in (path, fixed):
            if not candidate.is_file():
                continue
            try:
                records = load_dataset(
                    str(candidate),
                    is_train=True,
                    json_file=str(candidate),
                    image_root=str(image_folder),
                )
                for record in records[:2]:
                    mapper(record)
            except (DatasetError, ImageReadError) as error:
                assert candidate == path, f"seed {seed}: {error}"
            finally:
                unregister(str(candidate))

        if evaluate_json.main([str(results), str(path)]) == 2:
            check_one_line(capsys.readouterr().err)


def test_damaged_images_are_read_or_refused(tmp_path):
    for seed in range(NUM_IMAGES):
        rng = random.Random(seed)
        name, data = rng.choice(list(mutations.images(rng).items()))
        path = tmp_path / name
        path.write_bytes(mutations.mutate_bytes(data, rng))

        try:
            pixels = read_image(str(path))
        except ImageReadError as error:
            assert str(path) in str(error)
            assert "\n" not in str(error)
        else:
            assert pixels.dtype == np.uint8
            assert pixels.shape[2] == 3


def test_png_files_with_a_flipped_byte_are_refused(tmp_path):
    read = []
    for seed in range(NUM_FLIPPED_PNGS):
        rng = random.Random(seed)
        data = mutations.images(rng)[rng.choice(["rgb.png", "gray16.png", "palette.png"])]
        path = tmp_path / f"{seed}.png"
        path.write_bytes(mutations.flip_png_byte(data, rng))

        try:
            read_image(str(path))
            read.append(seed)
        except ImageReadError as error:
            assert path.name in str(error)
    assert not read


def test_an_image_of_far_too_many_pixels_is_refused(tmp_path):
    path = tmp_path / "bomb.png"
    path.write_bytes(mutations.png_bomb(100_000))
    with pytest.raises(ImageReadError, match=r"bomb\.png"):
        read_image(str(path))


def test_damaged_checkpoints_are_loaded_whole_or_refused(micro_config, tmp_path):
    torch.manual_seed(0)
    model = instantiate(load_config(micro_config).model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()

    classes = ClassList(("a",), (7,))
    checkpointer = TrainingCheckpointer(model, tmp_path, classes=classes, optimizer=optimizer)
    checkpointer.save("model_0000007", iteration=7)
    path = tmp_path / "model_0000007.pth"
    content = torch.load(path, weights_only=True)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    for seed in range(NUM_CHECKPOINTS):
        path.write_bytes(mutations.mutate_checkpoint(content, random.Random(seed)))

        for load in (lambda: load_weights(model, path), checkpointer.resume):
            try:
                load()
            except CheckpointError as error:
                assert "\n" not in str(error), f"seed {seed}"
                for name, tensor in model.state_dict().items():
                    assert torch.equal(tensor, before[name]), f"seed {seed}: half loaded: {name}"
            else:
                for name, tensor in model.state_dict().items():
                    assert torch.isfinite(tensor.float()).all(), f"seed {seed}: {name}"
                model.load_state_dict(before)


def test_deep_json_is_refused_in_one_line(tmp_path, image_folder, capsys):
    path = tmp_path / "deep.json"
    depth = 10 * sys.getrecursionlimit()
    path.write_text("[" * depth + "]" * depth)

    assert check_dataset.main([str(path), str(image_folder)]) == 2
    check_one_line(capsys.readouterr().err)
    assert evaluate_json.main([str(path), str(path)]) == 2
    check_one_line(capsys.readouterr().err)
