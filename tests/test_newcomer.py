"""The job of a new user, from VOC annotations to an exported model, by the console command."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import onnxruntime
import pytest

from salience_detr.cli.main import main
from salience_detr.data.surface.dataset import generate_surface_defects

# A run on 60 images must not bury its progress.
MOST_LINES = 80


def write_voc(folder: Path, num_images: int) -> None:
    """Write generated images with Pascal VOC's annotations."""
    (folder / "Annotations").mkdir(parents=True)
    generate_surface_defects(
        folder, split="train", num_images=num_images, image_size=(96, 96), progress=False
    )
    (folder / "train").rename(folder / "JPEGImages")

    content = json.loads((folder / "annotations" / "train.json").read_text())
    names = {category["id"]: category["name"] for category in content["categories"]}
    for image in content["images"]:
        root = ElementTree.Element("annotation")
        ElementTree.SubElement(root, "filename").text = image["file_name"]
        size = ElementTree.SubElement(root, "size")
        ElementTree.SubElement(size, "width").text = str(image["width"])
        ElementTree.SubElement(size, "height").text = str(image["height"])

        for annotation in content["annotations"]:
            if annotation["image_id"] != image["id"]:
                continue
            x, y, width, height = annotation["bbox"]
            entry = ElementTree.SubElement(root, "object")
            ElementTree.SubElement(entry, "name").text = names[annotation["category_id"]]
            box = ElementTree.SubElement(entry, "bndbox")
            corners = {"xmin": x + 1, "ymin": y + 1, "xmax": x + width, "ymax": y + height}
            for name, value in corners.items():
                ElementTree.SubElement(box, name).text = str(value)

        path = folder / "Annotations" / Path(image["file_name"]).with_suffix(".xml").name
        ElementTree.ElementTree(root).write(path)
    (folder / "annotations" / "train.json").unlink()


def call(*words: object) -> None:
    """Run the console command, which must succeed."""
    assert main([str(word) for word in words]) == 0


# The export alone takes a minute.
@pytest.mark.slow
def test_the_way_from_60_photographs_to_an_exported_model(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    write_voc(Path("photographs"), 60)

    call("convert", "voc", "photographs", "--output", "data")
    call("check", "--data-dir", "data")
    capfd.readouterr()

    call("train", "--config-file", "finetune_small", "--data-dir", "data", "--output", "run",
         "--image-size", 96, "--device", "cpu", "train.max_iter=20")  # fmt: skip
    printed = capfd.readouterr()
    lines = (printed.out + printed.err).count("\n")
    assert lines <= MOST_LINES, printed.out

    model = ("--config-file", "run/config.yaml", "--weights", "run/model_best.pth")
    call("val", *model, "--output", "evaluation")
    assert json.loads(Path("evaluation/metrics.json").read_text().splitlines()[-1])["bbox/AP"] >= 0

    call("make", "demo-inputs", "--images", "photographs/JPEGImages", "--output", "inputs",
         "--seconds", 1)  # fmt: skip
    call("predict", *model, "--input", "inputs", "--output", "drawn", "--json", "found.json")
    assert list(Path("drawn").glob("*.jpg"))
    assert list(Path("drawn").glob("*.mp4"))
    assert json.loads(Path("found.json").read_text())["images"]

    call("export", *model, "--output", "model.onnx")
    names = [x.name for x in onnxruntime.InferenceSession("model.onnx").get_outputs()]
    assert names
    call("predict", "--weights", "model.onnx", "--input", "inputs", "--output", "drawn_onnx")
