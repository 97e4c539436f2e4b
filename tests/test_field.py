"""The field's data sets that once went through silently, with the values that are right."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from salience_detr import Predictor
from salience_detr.cli import check_dataset, convert_dataset, evaluate_json
from salience_detr.cli import predict as demo
from salience_detr.cli import train as train_net

ROOT = Path(__file__).resolve().parents[1]
TINY = str(ROOT / "configs" / "surface_defects_tiny.py")
NEU_DET = str(ROOT / "configs" / "neu_det_r18.py")
WEIGHTS = str(ROOT / "demo" / "neu_det_r18.safetensors")
NAMES = ["crazing", "inclusion", "patches", "pitted_surface", "rolled-in_scale", "scratches"]
AP_ROW = re.compile(r"copypaste: (\d[\d.,nan]*)")


@pytest.fixture(autouse=True)
def no_data_at_hand(monkeypatch, tmp_path):
    """Hide NEU-DET, and forget the data sets that a test registers."""
    monkeypatch.delenv("NEU_DET", raising=False)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "none"))
    before = set(DatasetCatalog.list())
    yield
    for name in set(DatasetCatalog.list()) - before:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


@pytest.fixture
def field(shared, tmp_path):
    """Returns a copy of a case's folder, which programs may write into."""

    def copy(name: str) -> Path:
        target = tmp_path / Path(name).name
        shutil.copytree(shared(f"field/{name}"), target)
        return target

    return copy


def run(config: str, output: Path, *words: str | Path) -> int:
    """Run train_net.py in this process, without data workers."""
    settings = [f"train.output_dir={output}"]
    settings += ["dataloader.train.num_workers=0", "dataloader.test.num_workers=0"]
    return train_net.run(["--config-file", config, *map(str, words), *settings])


def evaluate(output: Path, *words: str | Path) -> int:
    return run(NEU_DET, output, "--weights", WEIGHTS, "--eval-only", *words)


def results_of(output: Path) -> list[dict]:
    (path,) = output.rglob("coco_instances_results.json")
    return json.loads(path.read_text())


@pytest.mark.parametrize("name", ["10-subset", "09b-swapped"])
def test_a_val_set_of_other_categories_is_evaluated_by_name(field, tmp_path, capfd, name):
    data = field(f"10-val-subset/{name}")
    code = evaluate(tmp_path / "out", "--data-dir", data)
    printed = capfd.readouterr()

    # Three photographs of each class that val has are found well by weights trained on them.
    assert code == 0, printed.err
    categories = json.loads((data / "annotations" / "val.json").read_text())["categories"]
    assert {x["category_id"] for x in results_of(tmp_path / "out")} <= {x["id"] for x in categories}
    log = (tmp_path / "out" / "log.txt").read_text()
    assert float(AP_ROW.findall(log)[-1].split(",")[0]) > 20


@pytest.mark.parametrize("kind", ["14b-text-category-ids", "14c-float-ids", "45-text-boxes"])
def test_numbers_as_texts_are_mended(field, tmp_path, kind):
    data = field(f"14b-text-category-ids/{kind}")
    for split, num_boxes in (("train", 27), ("val", 17)):
        fixed = tmp_path / f"{split}.json"
        files = [data / "annotations" / f"{split}.json", data / "images" / split]
        check_dataset.main([*map(str, files), "--workers", "0", "--fix", str(fixed)])
        assert len(json.loads(fixed.read_text())["annotations"]) == num_boxes


def test_yolo_with_confidences_keeps_its_boxes(field, tmp_path):
    data = field("22-yolo-confidence/22-yolo-confidence")
    assert convert_dataset.main(["yolo", str(data), "--output", str(tmp_path / "out")]) == 0
    counts = {}
    for path in (tmp_path / "out").rglob("*.json"):
        counts[path.stem] = len(json.loads(path.read_text())["annotations"])
    assert sorted(counts.values()) == [14, 17]


def test_voc_in_class_folders_is_converted(field, tmp_path):
    data = field("24-voc-class-folders/24-voc-class-folders/train")
    words = ["voc", str(data), "--annotations", str(data / "annotations")]
    words += ["--images", str(data / "images"), "--output", str(tmp_path / "out")]
    assert convert_dataset.main(words) == 0
    contents = [json.loads(path.read_text()) for path in (tmp_path / "out").rglob("*.json")]
    assert sum(len(content["images"]) for content in contents) == 12
    assert sum(len(content["annotations"]) for content in contents) == 27


def test_every_readable_image_of_a_folder_is_detected_on(field, tmp_path, capsys):
    folder = field("20-endings/20-endings")
    results = tmp_path / "results.json"
    words = ["--config-file", NEU_DET, "--weights", WEIGHTS, "--input", str(folder)]
    demo.main([*words, "--output", str(tmp_path / "out"), "--json", str(results)])

    # HEIC needs a reader of its own, and is told.
    names = {Path(x["file_name"]).name for x in json.loads(results.read_text())["images"]}
    present = {path.name for path in folder.iterdir()}
    assert present - names <= {"phone.heic"}
    assert "heic" in "".join(capsys.readouterr()) or "phone.heic" in names


@pytest.mark.parametrize("name", ["image_info_test", "image_info_test_empty"])
def test_images_without_annotations_give_results_without_ap(field, tmp_path, capfd, name):
    data = field("25-image-info/25-image-info")
    code = train_net.run(
        [
            "--config-file",
            NEU_DET,
            "--weights",
            WEIGHTS,
            "--eval-only",
            "--val-json",
            str(data / "annotations" / f"{name}.json"),
            "--val-images",
            str(data / "images" / "test"),
            f"train.output_dir={tmp_path / 'out'}",
            "dataloader.test.num_workers=0",
        ]
    )
    assert code == 0, capfd.readouterr().err
    assert results_of(tmp_path / "out")


def test_shipped_weights_know_their_classes_without_the_data():
    predictor = Predictor(NEU_DET, WEIGHTS, device="cpu")
    assert predictor.class_names == NAMES
    assert predictor.classes.category_ids == (1, 2, 3, 4, 5, 6)


@pytest.mark.parametrize("names", ["mine_val", "[mine_val,mine_train]"])
def test_own_records_without_ids_are_evaluated(field, shared, tmp_path, monkeypatch, capfd, names):
    data = field("28-no-image-id/28-dicts")
    monkeypatch.setenv("MINE", str(data))
    monkeypatch.setenv("MINE_WITH_ID", "0")

    # The config imports the project's recipes as its neighbors.
    for path in (ROOT / "configs").iterdir():
        (tmp_path / "configs").mkdir(exist_ok=True)
        os.symlink(path, tmp_path / "configs" / path.name)
    config = tmp_path / "configs" / "mine_dicts.py"
    shutil.copy(shared("field/28-no-image-id/mine_dicts.py.txt"), config)

    code = train_net.run(
        [
            "--config-file",
            str(config),
            "--eval-only",
            "--ignore-class-names",
            "--weights",
            str(ROOT / "demo" / "surface_defects_tiny.safetensors"),
            f"dataloader.test.dataset.names={names}",
            f"train.output_dir={tmp_path / 'out'}",
            "dataloader.test.num_workers=0",
        ]
    )
    assert code == 0, capfd.readouterr().err
    log = (tmp_path / "out" / "log.txt").read_text()
    assert len(AP_ROW.findall(log)) == 1 + names.count(",")


def test_two_categories_of_one_name_have_two_rows(field, capsys):
    data = field("33-name-twice/33-name-twice")
    words = [str(data / "results_val.json"), str(data / "annotations" / "val.json"), "--classes"]
    assert evaluate_json.main(words) == 0
    rows = re.findall(r"\| (inclusion.*?)\s*\|\s*([\d.]+) \|", capsys.readouterr().out)
    assert rows == [("inclusion (id 2)", "100.0"), ("inclusion (id 3)", "0.0")]


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("05-fractions/05-fractions", "fractions"),
        ("11-all-crowd/11-all-crowd", "no box"),
        ("12-segmentation-only/12-segmentation-only", "--fix"),
        ("14b-text-category-ids/14b-text-category-ids", "--fix"),
        ("14b-text-category-ids/45-text-boxes", "--fix"),
    ],
)
def test_training_refuses_what_would_be_learned_wrong(field, tmp_path, capfd, name, fault):
    assert run(TINY, tmp_path / "out", "--data-dir", field(name)) == 2
    (line,) = [x for x in capfd.readouterr().err.splitlines() if x.startswith("error:")]
    assert fault in line


@pytest.mark.parametrize(
    ("name", "words"),
    [("01-cvat-default", ["--val-fraction", "0.3"]), ("01b-cvat-subsets", [])],
)
def test_exports_of_cvat_are_trained_on(field, tmp_path, capfd, micro_config, name, words):
    data = field(f"51-one-coco-file/{name}")
    code = train_net.run(
        [
            "--config-file",
            micro_config,
            "--data-dir",
            str(data),
            *words,
            "train.max_iter=1",
            f"train.output_dir={tmp_path / 'out'}",
            "dataloader.train.num_workers=0",
        ]
    )
    assert code == 0, capfd.readouterr().err
    assert (tmp_path / "out" / "model_final.pth").is_file()


def test_training_on_corners_in_place_of_sides_is_told(field, tmp_path, capfd, micro_config):
    words = ["--data-dir", field("06-corners/06-corners"), "train.max_iter=1"]
    assert run(micro_config, tmp_path / "out", *words) == 0
    assert "10 of 17 boxes fit into their image as corners" in "".join(capfd.readouterr())


def test_one_coco_file_without_a_split_is_told_how_to_split_it(field, tmp_path, capfd):
    data = field("51-one-coco-file/01-cvat-default")
    assert run(TINY, tmp_path / "out", "--data-dir", data) == 2
    assert "--val-fraction" in capfd.readouterr().err


def test_a_run_whose_val_set_has_no_boxes_keeps_its_last_weights_as_best(
    field, tmp_path, capfd, micro_config
):
    data = field("43-val-without-boxes/43-val-without-boxes")
    code = train_net.run(
        [
            "--config-file",
            micro_config,
            "--data-dir",
            str(data),
            "train.max_iter=2",
            "train.eval_period=1",
            f"train.output_dir={tmp_path / 'out'}",
            "dataloader.train.num_workers=0",
            "dataloader.test.num_workers=0",
        ]
    )
    printed = capfd.readouterr()
    assert code == 0, printed.err
    assert (tmp_path / "out" / "model_best.pth").is_file()
    assert "model_best" in printed.out + printed.err
