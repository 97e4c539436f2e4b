"""Own data by flags: data sets, classes and the schedule follow."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from detectron2.config import instantiate

from salience_detr import Predictor
from salience_detr.cli import train as train_net
from salience_detr.config import ConfigError, load_config
from salience_detr.data.datasets import DatasetError

CATEGORIES = [{"id": 7, "name": "nick"}, {"id": 30, "name": "burr"}]


@pytest.fixture
def own_data(surface_root, tmp_path):
    """Make the generated images with two categories of other ids, in COCO's layout."""
    root = tmp_path / "own"
    for split in ("train", "val"):
        shutil.copytree(surface_root / "surface_defects" / split, root / split)
        content = json.loads(
            (surface_root / "surface_defects" / "annotations" / f"{split}.json").read_text()
        )
        content["categories"] = CATEGORIES
        for annotation in content["annotations"]:
            annotation["category_id"] = CATEGORIES[annotation["category_id"] % 2]["id"]
        (root / "annotations").mkdir(exist_ok=True)
        (root / "annotations" / f"{split}.json").write_text(json.dumps(content))

    return root


def configure(*words):
    return train_net.make_config(train_net.parse_args(["--config-file", *map(str, words)]))


def flags(root, *splits):
    words = []
    for split in splits:
        words += [
            f"--{split}-json",
            root / "annotations" / f"{split}.json",
            f"--{split}-images",
            root / split,
        ]

    return words


def test_classes_and_data_sets_follow_the_files(own_data, micro_config):
    for words in (["--data-dir", own_data], flags(own_data, "train", "val")):
        config = configure(micro_config, *words)
        assert config.model.num_classes == 2
        assert config.dataloader.train.dataset.json_file == str(
            own_data / "annotations" / "train.json"
        )
        assert config.dataloader.test.dataset.image_root == str(own_data / "val")


def test_the_schedule_keeps_its_proportions(own_data):
    config = configure(
        "configs/salience_detr_r50_4scale_12ep.py", "--data-dir", own_data, "--epochs", "100"
    )
    # 100 epochs of 12 images in batches of 16 are 75 iterations. Evaluations come at most 12 times,
    # as in the 12 epochs of COCO: every 75 / 12 = 6.25 iterations, rounded up.
    assert config.train.max_iter == 75
    assert config.train.eval_period == config.train.checkpointer.period == 7
    # 1,000 iterations are more than a tenth of the run.
    assert config.lr_multiplier.warmup_length == pytest.approx(0.1)

    default = configure("configs/salience_detr_r50_4scale_12ep.py", "--data-dir", own_data)
    assert default.train.max_iter == 9 and default.train.epochs == 12


def test_what_the_user_sets_stays(own_data, micro_config):
    words = [
        "train.max_iter=10",
        "train.eval_period=3",
        "model.num_classes=9",
        "lr_multiplier.warmup_length=0.5",
    ]
    config = configure(micro_config, "--data-dir", own_data, *words)

    assert (config.train.max_iter, config.train.eval_period, config.model.num_classes) == (10, 3, 9)
    assert config.lr_multiplier.warmup_length == 0.5


def test_a_run_on_own_data_leaves_all_that_is_needed_to_use_it(own_data, micro_config, tmp_path):
    output = tmp_path / "run"
    words = ["--config-file", micro_config, "--data-dir", str(own_data), "--epochs", "0.5"]

    assert train_net.run([*words, f"train.output_dir={output}"]) == 0

    results = json.loads((output / "inference" / "coco_instances_results.json").read_text())
    assert {x["category_id"] for x in results} <= {7, 30}

    log = (output / "log.txt").read_text()
    assert "| nick" in log and "| burr" in log

    # The saved config alone evaluates, resumes and detects.
    saved, weights = str(output / "config.yaml"), str(output / "model_final.pth")
    evaluation = [
        "--config-file",
        saved,
        "--eval-only",
        "--weights",
        weights,
        f"train.output_dir={tmp_path / 'e'}",
    ]

    assert train_net.run(evaluation) == 0
    assert train_net.run(["--config-file", saved, "--resume"]) == 0

    predictor = Predictor(saved, weights)
    assert predictor.class_names == ["nick", "burr"]
    assert len(predictor(str(next((own_data / "val").glob("*.jpg")))))


def test_evaluation_needs_no_training_data(own_data, micro_config):
    config = configure(micro_config, "--eval-only", *flags(own_data, "val"), "--weights", "w.pth")
    assert config.model.num_classes == 2 and config.train.init_checkpoint == "w.pth"


def set_categories(json_file, categories):
    """Give an annotation file other categories; boxes of categories that it loses are dropped."""
    content = json.loads(json_file.read_text())
    content["categories"] = categories
    known = {category["id"] for category in categories}
    content["annotations"] = [x for x in content["annotations"] if x["category_id"] in known]
    json_file.write_text(json.dumps(content))


def test_other_ids_for_the_same_names_are_an_error_in_training_only(own_data, micro_config):
    path = own_data / "annotations" / "val.json"
    set_categories(path, [{"id": 7, "name": "nick"}, {"id": 31, "name": "burr"}])
    message = "'burr' has 30 and 31 .* give each name the same id in both files"

    with pytest.raises(DatasetError, match=message):
        configure(micro_config, "--data-dir", own_data)


@pytest.mark.parametrize(
    ("words", "error", "message"),
    [
        (["--train-json", "a.json"], ConfigError, "--train-json and --train-images go together"),
        (["--val-images", "."], ConfigError, "--val-json and --val-images go together"),
        (
            ["--train-json", "nothing.json", "--train-images", "."],
            ConfigError,
            "no val data: add --val-json FILE --val-images DIR",
        ),
        (
            ["--val-json", "a", "--val-images", "nowhere"],
            DatasetError,
            "no folder of images nowhere",
        ),
        (["--data-dir", "tests"], DatasetError, "no annotations in COCO's format"),
    ],
)
def test_missing_flags_and_files_are_named(micro_config, words, error, message):
    with pytest.raises(error, match=message):
        configure(micro_config, *words)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"images": []}, "no list 'categories'"),
        ({"images": [], "categories": []}, "has no categories"),
        (
            {"images": [], "categories": [{"id": "pit", "name": "pit"}]},
            "has the id 'pit', not a whole number",
        ),
        ({"categories": CATEGORIES}, "has no list 'images'"),
        ({"images": [], "categories": CATEGORIES}, "holds no images"),
    ],
)
def test_files_without_classes_or_images_are_refused(own_data, micro_config, content, message):
    (own_data / "annotations" / "train.json").write_text(json.dumps({"annotations": [], **content}))
    with pytest.raises(DatasetError, match=message):
        configure(micro_config, *flags(own_data, "train", "val"))


def test_epochs_must_be_positive(own_data, micro_config):
    with pytest.raises(ConfigError, match="--epochs is 0; it must be positive"):
        configure(micro_config, "--data-dir", own_data, "--epochs", "0")


def test_a_val_set_with_fewer_categories_is_evaluated_by_name(own_data, micro_config, tmp_path):
    set_categories(own_data / "annotations" / "val.json", CATEGORIES[1:])
    output = tmp_path / "run"
    words = ["--config-file", micro_config, "--data-dir", str(own_data), "--epochs", "0.5"]

    assert train_net.run([*words, f"train.output_dir={output}"]) == 0

    log = (output / "log.txt").read_text()
    line = "has 1 of the 2 classes (burr (id 30)): evaluated by name, AP is over these"
    assert log.count(line) == 1
    results = json.loads((output / "inference" / "coco_instances_results.json").read_text())
    assert {x["category_id"] for x in results} == {30}
    assert Predictor(str(output / "config.yaml"), str(output / "model_final.pth")).class_names == [
        "nick",
        "burr",
    ]


def test_a_val_set_with_other_categories_is_refused_in_training(own_data, micro_config):
    other = [*CATEGORIES, {"id": 31, "name": "weld"}]
    set_categories(own_data / "annotations" / "val.json", other)
    with pytest.raises(DatasetError, match=r"val\.json has categories .* lacks: weld"):
        configure(micro_config, "--data-dir", own_data)
    assert configure(micro_config, "--data-dir", own_data, "--eval-only").model.num_classes == 2


def test_evaluation_of_weights_without_names_goes_by_those_of_the_training_set(
    own_data, micro_config, tmp_path
):
    path = own_data / "annotations" / "val.json"
    content = json.loads(path.read_text())
    swapped = {7: 30, 30: 7}
    for entry in content["annotations"]:
        entry["category_id"] = swapped[entry["category_id"]]
    for category in content["categories"]:
        category["id"] = swapped[category["id"]]
    (own_data / "annotations" / "swapped.json").write_text(json.dumps(content))

    weights = tmp_path / "w.pth"
    config = configure(micro_config, "--data-dir", own_data)
    torch.save({"model": instantiate(config.model).state_dict()}, weights)

    results = []
    for name in ("val", "swapped"):
        output = tmp_path / name
        files = ["--train-json", own_data / "annotations" / "train.json", "--train-images"]
        files += [own_data / "train", "--val-json", own_data / "annotations" / f"{name}.json"]
        words = ["--config-file", micro_config, *files, "--val-images", own_data / "val"]
        words += ["--eval-only", "--weights", weights, f"train.output_dir={output}"]
        assert train_net.run([str(word) for word in words]) == 0
        file = output / "inference" / "coco_instances_results.json"
        results.append(json.loads(file.read_text()))

    # The same detections, with the ids that the evaluated file gives.
    plain, other = results
    assert [swapped[x["category_id"]] for x in plain] == [x["category_id"] for x in other]
    assert [x["bbox"] for x in plain] == [x["bbox"] for x in other]


def test_categories_without_boxes_are_named_and_can_be_left_out(own_data, micro_config, tmp_path):
    root = {"id": 0, "name": "parts", "supercategory": "none"}
    only_in_val = {"id": 8, "name": "weld", "supercategory": "parts"}
    for split in ("train", "val"):
        path = own_data / "annotations" / f"{split}.json"
        content = json.loads(path.read_text())
        content["categories"] = [root, *CATEGORIES, only_in_val]
        if split == "val":
            content["annotations"][0]["category_id"] = 8
        path.write_text(json.dumps(content))

    words = ["--config-file", micro_config, "--data-dir", str(own_data), "--epochs", "0.5"]
    output = tmp_path / "run"
    dropping = [*words, "--drop-empty-categories", f"train.output_dir={output}"]
    assert train_net.run(dropping) == 0

    log = (output / "log.txt").read_text()
    assert "left out the categories without boxes: parts (id 0)" in log
    assert "1 of the 3 classes have no box in the training data: weld (id 8)" in log
    assert "| parts" not in log and "| weld" in log
    assert load_config(output / "config.yaml").model.num_classes == 3
    predictor = Predictor(str(output / "config.yaml"), str(output / "model_final.pth"))
    assert predictor.class_names == ["nick", "weld", "burr"]

    assert configure(*words[1:]).model.num_classes == 4
    with pytest.raises(ConfigError, match="--drop-empty-categories goes with --data-dir"):
        configure(micro_config, "--drop-empty-categories")


def test_at_least_one_category_must_have_boxes(own_data, micro_config):
    for split in ("train", "val"):
        path = own_data / "annotations" / f"{split}.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "annotations": []}))
    with pytest.raises(DatasetError, match=r"no category of .* has a box in any split"):
        configure(micro_config, "--data-dir", own_data, "--drop-empty-categories")


def test_training_with_a_val_set_without_annotations_keeps_the_last_as_best(
    own_data, micro_config, tmp_path
):
    path = own_data / "annotations" / "val.json"
    content = json.loads(path.read_text())
    del content["annotations"]
    path.write_text(json.dumps(content))
    output = tmp_path / "run"
    words = ["--config-file", micro_config, "--data-dir", str(own_data), "--epochs", "0.5"]

    assert train_net.run([*words, f"train.output_dir={output}"]) == 0
    assert (output / "model_best.pth").is_file() and (output / "previews").is_dir()
    assert json.loads((output / "inference" / "coco_instances_results.json").read_text())
    log = (output / "log.txt").read_text()
    assert "has no annotations: the detections are written, without AP" in log
    assert "model_best is the last one" in log
