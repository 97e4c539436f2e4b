"""Training runs from the command line: resume, two processes, mistakes."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from detectron2.config import instantiate
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode

from salience_detr.checkpoint import load_weights, read_checkpoint, save_weights
from salience_detr.cli import train as train_net
from salience_detr.config import load_config
from salience_detr.data import read_image, register_surface_defects
from salience_detr.data.classes import ClassList
from salience_detr.data.surface import SURFACE_DEFECT_CLASSES, generate_surface_defects
from salience_detr.engine.previews import TITLE_HEIGHT

ROOT = Path(__file__).resolve().parents[1]
WEIGHTS = ROOT / "demo" / "surface_defects_tiny.safetensors"
AP_ROW = re.compile(r"copypaste: (\d[\d.,nan]*)")


def command(config, output, *words):
    return [
        sys.executable,
        str(ROOT / "train_net.py"),
        "--config-file",
        str(config),
        *words,
        f"train.output_dir={output}",
    ]


def environment(**changes):
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", **changes}


def losses(output):
    lines = [json.loads(line) for line in (output / "metrics.json").read_text().splitlines()]
    return {line["iteration"]: line["total_loss"] for line in lines if "total_loss" in line}


def run(config, output, *words):
    return train_net.run(["--config-file", str(config), *words, f"train.output_dir={output}"])


@pytest.fixture
def full_run(micro_config, surface_data, tmp_path):
    """Train for six iterations without interruption and return the output folder."""
    assert run(micro_config, tmp_path / "full") == 0
    return tmp_path / "full"


def test_a_run_trains_evaluates_and_leaves_its_records(full_run):
    names = {path.name for path in full_run.iterdir()}
    assert {"config.yaml", "log.txt", "metrics.json", "last_checkpoint", "model_final.pth"} <= names
    assert any(name.startswith("events.out.tfevents") for name in names)
    assert len(losses(full_run)) == 6

    log = (full_run / "log.txt").read_text()
    assert "images/s" in log and "eta" in log and AP_ROW.search(log)

    results = json.loads((full_run / "inference" / "coco_instances_results.json").read_text())
    assert {"image_id", "category_id", "bbox", "score"} <= results[0].keys()
    assert {x["category_id"] for x in results} <= set(range(1, 7))


def test_a_killed_run_resumes_exactly(full_run, micro_config, surface_data, tmp_path):
    output = tmp_path / "killed"
    process = subprocess.Popen(
        command(micro_config, output),
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )

    try:
        deadline = time.monotonic() + 90
        while not (output / "model_0000004.pth").exists():
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()

    # What a kill in the middle of a write leaves behind.
    (output / "model_0000005.pth.0123abcd.tmp").write_bytes(b"half")
    (output / "model_final.pth").unlink(missing_ok=True)

    assert run(micro_config, output, "--resume") == 0

    expected, found = (read_checkpoint(x / "model_final.pth") for x in (full_run, output))
    assert all(
        torch.equal(expected["model"][name], found["model"][name]) for name in expected["model"]
    )
    assert expected["iteration"] == found["iteration"] == 6

    iterations = [
        json.loads(line)["iteration"] for line in (output / "metrics.json").read_text().splitlines()
    ]
    assert iterations == sorted(iterations) and len(iterations) <= 7  # six steps and the evaluation

    resumed = losses(output)
    assert {i: resumed[i] for i in (4, 5)} == {i: losses(full_run)[i] for i in (4, 5)}


def test_a_terminated_run_saves_and_exits_cleanly(micro_config, surface_data, tmp_path):
    output = tmp_path / "stopped"
    words = command(micro_config, output, "train.max_iter=100000", "train.checkpointer.period=0")
    process = subprocess.Popen(
        words, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    wait_for_steps(output, process)
    process.terminate()

    assert process.wait(30) == 0

    saved = output / (output / "last_checkpoint").read_text()
    assert read_checkpoint(saved)["iteration"] > 0


def wait_for_steps(output, process, count=1):
    """Wait until so many steps are on record."""
    deadline = time.monotonic() + 120
    metrics = output / "metrics.json"

    while not metrics.exists() or metrics.read_text().count("total_loss") < count:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)


def test_several_processes_in_mixed_precision_stop_cleanly_with_their_parent(
    micro_config, surface_data, tmp_path
):
    words = [
        "--num-gpus",
        "2",
        "train.max_iter=100000",
        "train.checkpointer.period=0",
        "train.amp.enabled=True",
    ]
    process = subprocess.Popen(
        command(micro_config, tmp_path, *words),
        env=environment(CUDA_VISIBLE_DEVICES=""),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for_steps(tmp_path, process)
    process.terminate()
    _, errors = process.communicate(timeout=60)

    assert process.returncode == 0 and "Traceback" not in errors
    assert read_checkpoint(tmp_path / (tmp_path / "last_checkpoint").read_text())["iteration"] > 0


def test_a_broken_image_of_another_process_costs_no_step(micro_config, surface_root, tmp_path):
    root = tmp_path / "data"
    shutil.copytree(surface_root, root)
    environ = environment(DETECTRON2_DATASETS=str(root), CUDA_VISIBLE_DEVICES="")
    output = tmp_path / "out"
    words = ["--num-gpus", "2", "train.max_iter=100000", "train.checkpointer.period=0"]
    process = subprocess.Popen(
        command(micro_config, output, *words),
        env=environ,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for_steps(output, process)

    # Only the second process comes to this image in the next steps, or both do: each has to save.
    image = root / "surface_defects" / "train" / "000001.jpg"
    image.write_bytes(image.read_bytes()[:300])
    _, errors = process.communicate(timeout=120)

    assert process.returncode == 2 and "Traceback" not in errors
    assert re.search(r"^error: .*cannot read the image .*000001\.jpg", errors, re.M)

    saved = read_checkpoint(output / (output / "last_checkpoint").read_text())["iteration"]
    assert saved == len(losses(output)) > 0


def test_a_refused_run_leaves_the_config_of_the_folder(full_run, micro_config, surface_data):
    before = (full_run / "config.yaml").read_text()
    assert run(micro_config, full_run, "optimizer.lr=1") == 2

    weights = f"train.init_checkpoint={full_run / 'model_final.pth'}"
    assert run(micro_config, full_run, "--eval-only", weights) == 0
    assert (full_run / "config.yaml").read_text() == before and not list(full_run.glob("new.*"))


def test_a_run_is_resumed_where_a_new_one_has_no_room(
    full_run, micro_config, surface_data, monkeypatch, capsys
):
    size = (full_run / "model_final.pth").stat().st_size
    usage = SimpleNamespace(free=2 * size)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    (full_run / "model_final.pth").unlink()

    assert run(micro_config, full_run, "--resume", "train.checkpointer.max_to_keep=1") == 0
    assert run(micro_config, full_run.parent / "new") == 2
    assert "MiB free, but the checkpoints need about" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["neu_det_retinanet_r18", "neu_det_fcos_r18"])
def test_another_detector_trains_and_resumes(surface_data, tmp_path, name):
    data = [
        f"--val-json={surface_data / 'annotations' / 'val.json'}",
        f"--val-images={surface_data / 'val'}",
    ]
    data += [x.replace("val", "train") for x in data]
    words = [
        *data,
        "dataloader.train.total_batch_size=2",
        "train.max_iter=4",
        "train.checkpointer.period=2",
    ]
    words += ["train.eval_period=0", "train.log_period=1", "train.previews=0"]
    config = ROOT / "configs" / f"{name}.py"

    assert run(config, tmp_path / "full", *words) == 0
    shutil.copytree(tmp_path / "full", tmp_path / "part")

    (tmp_path / "part" / "model_final.pth").unlink()
    (tmp_path / "part" / "model_0000004.pth").unlink(missing_ok=True)
    (tmp_path / "part" / "last_checkpoint").write_text("model_0000002.pth")

    assert run(config, tmp_path / "part", *words, "--resume") == 0

    # Its loss normalizer, a running mean, is not saved: what is resumed is not exactly the same.
    full = losses(tmp_path / "full")
    assert losses(tmp_path / "part") == {
        0: full[0],
        1: full[1],
        2: pytest.approx(full[2], rel=0.5),
        3: pytest.approx(full[3], rel=0.5),
    }


def test_a_disk_that_fills_up_costs_no_checkpoint(full_run, micro_config, surface_data, tmp_path):
    output = tmp_path / "filling"
    shutil.copytree(full_run, output)
    (output / "model_final.pth").unlink()
    (output / "last_checkpoint").write_text("model_0000002.pth")
    (output / "model_0000004.pth").unlink()
    (output / "model_best.pth").unlink(missing_ok=True)
    before = (output / "model_0000002.pth").read_bytes()
    limit = len(before) // 2  # larger files cannot be written, as on a full disk

    def fill_disk():
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    words = command(micro_config, output, "--resume")
    result = subprocess.run(
        words,
        env=environment(),
        preexec_fn=fill_disk,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )

    assert result.returncode == 2
    assert re.search(
        r"^error: .*cannot write the checkpoint .*earlier checkpoints are intact",
        result.stderr,
        re.M,
    )
    assert (output / "model_0000002.pth").read_bytes() == before and not list(output.glob("*.tmp"))
    assert run(micro_config, output, "--resume") == 0
    assert losses(output) == losses(full_run)


@pytest.fixture
def equal_boxes(tmp_path, monkeypatch):
    """Make images with exactly three boxes each: any split of a batch has equally many queries."""
    root = tmp_path / "data" / "surface_defects"
    # Five validation images: two processes have shares of different size.
    for split, count in (("train", 60), ("val", 5)):
        path = generate_surface_defects(root, split=split, num_images=count, progress=False)
        content = json.loads(path.read_text())
        of_image = {image["id"]: [] for image in content["images"]}
        for annotation in content["annotations"]:
            of_image[annotation["image_id"]].append(annotation)
        if split == "train":
            kept = [i for i, annotations in of_image.items() if len(annotations) == 3][:8]
            assert len(kept) == 8
            content["images"] = [image for image in content["images"] if image["id"] in kept]
            content["annotations"] = [x for x in content["annotations"] if x["image_id"] in kept]
            path.write_text(json.dumps(content))

    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "data"))


def ap_table(output, *words, launcher=(), builder="build_model"):
    """Return the AP table, as printed, of a run of the small model, started by ``launcher``."""
    # float64, because sums over processes round differently, and every printed digit is compared.
    options = [
        f"train.init_checkpoint={WEIGHTS}",
        f"model._target_=tests.double_precision.{builder}",
    ]
    call = command(ROOT / "configs/surface_defects_tiny.py", output, *words, *options)
    result = subprocess.run(
        [call[0], *launcher, *call[1:]],
        env=environment(CUDA_VISIBLE_DEVICES="", PYTHONPATH=str(ROOT)),
        capture_output=True,
        text=True,
        timeout=200,
    )

    assert result.returncode == 0, result.stderr[-3000:]

    return AP_ROW.findall((output / "log.txt").read_text())[-1]


@pytest.mark.slow
def test_two_processes_train_and_evaluate_like_one_however_they_are_started(equal_boxes, tmp_path):
    # Denoising noise and the number of its groups are drawn per process, as published.
    options = [
        "train.max_iter=3", "train.eval_period=0", "optimizer.lr=1e-4",
        "dataloader.train.total_batch_size=4",
        "model.denoising.label_noise_prob=0", "model.denoising.box_noise_scale=0",
    ]  # fmt: skip
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    one = ap_table(tmp_path / "one", *options)
    two = ap_table(tmp_path / "two", "--num-gpus", "2", *options)
    other = ap_table(tmp_path / "torchrun", *options, launcher=torchrun)

    assert one == two == other
    assert float(one.split(",")[0]) > 30

    expected, found, again = (
        read_checkpoint(tmp_path / name / "model_final.pth")["model"]
        for name in ("one", "two", "torchrun")
    )
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=1e-7, rtol=1e-7, msg=name)
        assert torch.equal(found[name], again[name]), name


def test_processes_that_accumulate_train_like_one_that_does_not(equal_boxes, tmp_path):
    options = [
        "train.max_iter=2", "train.eval_period=0", "optimizer.lr=1e-4",
        "dataloader.train.total_batch_size=4",
        "model.denoising.label_noise_prob=0", "model.denoising.box_noise_scale=0",
    ]  # fmt: skip
    one = ap_table(tmp_path / "one", *options, builder="build_frozen_model")
    options += ["--num-gpus", "2", "train.accumulate=2"]

    assert ap_table(tmp_path / "two", *options, builder="build_frozen_model") == one

    expected, found = (
        read_checkpoint(tmp_path / name / "model_final.pth")["model"] for name in ("one", "two")
    )
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=1e-7, rtol=1e-7, msg=name)

    plain = losses(tmp_path / "one")
    assert losses(tmp_path / "two") == {i: pytest.approx(plain[i], rel=1e-6) for i in plain}


def test_the_saved_results_evaluate_to_the_same_table(surface_data, micro_config, tmp_path, capsys):
    assert run(micro_config, tmp_path, "train.max_iter=1") == 0

    from salience_detr.cli.evaluate_json import main

    expected = AP_ROW.findall((tmp_path / "log.txt").read_text())[-1].split(",")
    results = tmp_path / "inference" / "coco_instances_results.json"

    assert main([str(results), str(surface_data / "annotations" / "val.json")]) == 0

    table = capsys.readouterr().out
    assert f"{float(expected[0]):.1f}" in table


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train.max_itr=3"], "did you mean train.max_iter"),
        (["model.num_classes=2"], "has 6 classes, but the model has 2; set model.num_classes=6"),
        (["--eval-only"], "needs weights"),
        (["train.init_checkpoint=nothing.pth"], "no checkpoint file nothing.pth"),
        (["dataloader.train.dataset.names=nowhere"], "no data set 'nowhere'"),
        (["train.output_dir=/dev/null/x"], "cannot be written to"),
        (["train.max_iter=abc"], "train.max_iter is a whole number, such as 6"),
        (["dataloader.train.total_batch_size=0"], "total_batch_size is 0; it must be at least 1"),
        (["model.num_queries=-3"], "model.num_queries is -3; it must be at least 1"),
        (["train.output_dir=5"], "train.output_dir is a text"),
        (["train.device=nonsense"], "the device 'nonsense' cannot be used"),
        (
            ["train.ema.enabled=True", "train.ema.decay=1.5"],
            "train.ema.decay is 1.5; it lies between 0 and 1",
        ),
        (["train.accumulate=0"], "train.accumulate is 0; it must be at least 1"),
        (["train.amp=true"], "train.amp is a group of settings: set train.amp.enabled=True"),
        (
            ["train.compile=True", "model.backbone.use_checkpoint=True"],
            "set model.backbone.use_checkpoint=False",
        ),
        (["model.num_classes=9"], "has 6 classes, but the model has 9; set model.num_classes=6"),
        (["train.amp.enabled=True", "train.amp.dtype=fp8"], "use auto, bf16 or fp16"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_two(
    surface_data, micro_config, tmp_path, capsys, words, message
):
    code = train_net.run(["--config-file", micro_config, f"train.output_dir={tmp_path}", *words])
    printed = capsys.readouterr()
    errors = [
        line
        for line in printed.err.splitlines()
        if "Warning" not in line and not line.startswith(" ")
    ]

    assert code == 2
    assert len(errors) == 1 and errors[0].startswith("error:") and message in errors[0]
    assert "Traceback" not in printed.out + printed.err


def test_a_model_of_other_classes_is_fine_tuned_by_one_override(
    surface_data, micro_config, tmp_path
):
    four = instantiate(load_config(micro_config, ["model.num_classes=4"]).model)
    torch.save(four.state_dict(), tmp_path / "four.pth")
    output = tmp_path / "run"

    assert (
        run(
            micro_config,
            output,
            "train.max_iter=1",
            f"train.init_checkpoint={tmp_path / 'four.pth'}",
        )
        == 0
    )

    log = (output / "log.txt").read_text()
    assert log.count("4 classes in the file, 6 in the model; these start with random weights") == 1
    assert read_checkpoint(output / "model_final.pth")["class_names"] == list(
        SURFACE_DEFECT_CLASSES
    )

    assert read_checkpoint(output / "model_final.pth")["category_ids"] == [1, 2, 3, 4, 5, 6]


def test_weights_of_another_backbone_are_refused_by_their_name(
    surface_data, micro_config, tmp_path, capsys
):
    torch.save({"features.1.0.layer_scale": torch.ones(1)}, tmp_path / "convnext.pth")
    assert run(micro_config, tmp_path, f"train.init_checkpoint={tmp_path / 'convnext.pth'}") == 2
    assert "looks like a torchvision ConvNeXt" in capsys.readouterr().err


def test_a_loss_that_is_not_finite_stops_with_step_terms_and_images(
    surface_data, micro_config, tmp_path, capsys
):
    code = run(
        micro_config,
        tmp_path,
        "optimizer.lr=1e38",
        "train.clip_grad_norm=0",
        "train.checkpointer.period=1",
    )
    error = next(x for x in capsys.readouterr().err.splitlines() if x.startswith("error:"))

    assert code == 2
    assert re.search(r"not finite at iteration \d; images \d+, \d+; .*loss_class=", error)

    kept = sorted(tmp_path.glob("model_000*.pth"))
    assert kept and all(torch.isfinite(x).all() for x in read_checkpoint(kept[0])["model"].values())


def test_a_folder_with_another_runs_checkpoints_is_not_mixed_up(full_run, micro_config, capsys):
    assert run(micro_config, full_run) == 2
    assert "of an earlier run" in capsys.readouterr().err


def test_an_unreadable_image_is_one_line_even_from_a_worker_of_two_processes(
    micro_config, surface_root, tmp_path
):
    root = tmp_path / "data"
    shutil.copytree(surface_root, root)
    for image in (root / "surface_defects" / "train").glob("*.jpg"):
        image.write_bytes(b"no image")

    words = command(
        micro_config, tmp_path / "out", "--num-gpus", "2", "dataloader.train.num_workers=1"
    )
    environ = environment(DETECTRON2_DATASETS=str(root), CUDA_VISIBLE_DEVICES="")
    result = subprocess.run(words, env=environ, capture_output=True, text=True, timeout=120)

    assert result.returncode == 2
    assert "Traceback" not in result.stderr
    assert re.search(r"^error: .*cannot read the image .*train/0000\d\d\.jpg", result.stderr, re.M)


@pytest.mark.slow
def test_compiled_stages_train_alike(full_run, micro_config, surface_data, tmp_path):
    assert run(micro_config, tmp_path, "train.compile=True", "train.max_iter=2") == 0

    plain = losses(full_run)
    assert losses(tmp_path) == {i: pytest.approx(plain[i], rel=1e-3) for i in (0, 1)}


def test_the_ema_of_the_weights_is_evaluated_kept_and_preferred(
    surface_data, micro_config, tmp_path
):
    assert (
        run(
            micro_config,
            tmp_path,
            "train.ema.enabled=True",
            "train.ema.evaluate=both",
            "train.eval_period=2",
            "train.max_iter=4",
        )
        == 0
    )

    lines = [json.loads(line) for line in (tmp_path / "metrics.json").read_text().splitlines()]
    assert all(name in lines[-1] for name in ("bbox/AP", "ema/bbox/AP"))
    for folder in ("inference", "inference_ema"):
        assert (tmp_path / folder / "coco_instances_results.json").exists()
    assert json.loads((tmp_path / "model_best.json").read_text())["metric"] == "ema/bbox/AP"

    saved = read_checkpoint(tmp_path / "model_final.pth")
    name = "query_embedding"

    assert not torch.equal(saved["ema"][name], saved["model"][name])

    model = instantiate(load_config(micro_config).model)
    load_weights(model, tmp_path / "model_final.pth")

    assert torch.equal(model.state_dict()[name], saved["ema"][name])


def test_a_resumed_ema_goes_on_exactly(surface_data, micro_config, tmp_path, capsys):
    words = ("train.ema.enabled=True", "train.accumulate=2")
    assert run(micro_config, tmp_path / "full", *words) == 0
    assert run(micro_config, tmp_path / "part", *words) == 0

    (tmp_path / "part" / "model_final.pth").unlink()
    (tmp_path / "part" / "last_checkpoint").write_text("model_0000002.pth")

    assert run(micro_config, tmp_path / "part", *words, "--resume") == 0
    assert run(micro_config, tmp_path / "part", "--resume") == 2
    assert "holds an EMA: resume with train.ema.enabled=True" in capsys.readouterr().err

    full, part = (read_checkpoint(tmp_path / x / "model_final.pth") for x in ("full", "part"))
    assert all(torch.equal(full["ema"][name], part["ema"][name]) for name in full["ema"])


def test_the_learning_rate_follows_the_batch_size_if_asked(surface_data, micro_config, tmp_path):
    for name, reference, expected in (("as_is", 0, 4e-4), ("scaled", 16, 4e-4 * 2 / 16)):
        words = ["train.max_iter=4", f"train.reference_batch_size={reference}"]
        assert run(micro_config, tmp_path / name, *words) == 0
        lines = [
            json.loads(line) for line in (tmp_path / name / "metrics.json").read_text().splitlines()
        ]
        assert max(line["lr"] for line in lines if "lr" in line) == pytest.approx(expected)

        # A run that starts from this config scales it once, too.
        assert load_config(tmp_path / name / "config.yaml").optimizer.lr == pytest.approx(4e-4)


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_mixed_precision_trains(surface_data, micro_config, tmp_path, dtype):
    words = [
        "train.amp.enabled=True",
        f"train.amp.dtype={dtype}",
        "train.accumulate=2",
        "train.max_iter=2",
    ]
    assert run(micro_config, tmp_path, *words) == 0
    assert len(losses(tmp_path)) == 2


def test_a_failed_evaluation_costs_no_training_and_is_made_up_for(
    surface_root, micro_config, tmp_path, monkeypatch
):
    shutil.copytree(surface_root, tmp_path / "data")
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "data"))
    register_surface_defects()
    image = tmp_path / "data" / "surface_defects" / "val" / "000002.jpg"
    whole = image.read_bytes()
    image.write_bytes(whole[:300])

    assert run(micro_config, tmp_path / "out") == 2

    image.write_bytes(whole)
    assert run(micro_config, tmp_path / "out", "--resume") == 0
    assert len(losses(tmp_path / "out")) == 6
    assert AP_ROW.search((tmp_path / "out" / "log.txt").read_text())

    before = (tmp_path / "out" / "metrics.json").read_text()
    assert "bbox/AP" in before
    assert run(micro_config, tmp_path / "out", "--resume") == 0  # nothing is left to do
    assert (tmp_path / "out" / "metrics.json").read_text() == before


def test_a_broken_training_image_costs_no_step(
    surface_root, micro_config, tmp_path, monkeypatch, capsys
):
    shutil.copytree(surface_root, tmp_path / "data")
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "data"))
    register_surface_defects()

    assert run(micro_config, tmp_path / "whole", "train.checkpointer.period=0") == 0

    images = sorted((tmp_path / "data" / "surface_defects" / "train").glob("*.jpg"))
    image = images[-1]
    whole = image.read_bytes()
    image.write_bytes(whole[:300])

    assert run(micro_config, tmp_path / "out", "train.checkpointer.period=0") == 2
    assert image.name in capsys.readouterr().err

    image.write_bytes(whole)
    done = read_checkpoint(tmp_path / "out" / (tmp_path / "out" / "last_checkpoint").read_text())[
        "iteration"
    ]

    assert 0 < done < 6
    assert run(micro_config, tmp_path / "out", "train.checkpointer.period=0", "--resume") == 0
    assert losses(tmp_path / "out") == losses(tmp_path / "whole")


def test_each_evaluation_shows_the_same_images(surface_data, micro_config, tmp_path):
    assert run(micro_config, tmp_path, "train.eval_period=3", "train.previews=2") == 0

    names = sorted(path.name for path in (tmp_path / "previews").iterdir())
    assert names == [f"00000{i}_000000{n}.jpg" for i in (1, 4) for n in (3, 6)]

    height, width, _ = read_image(str(tmp_path / "previews" / names[0])).shape
    # Enlarged to 400 pixels, below a line of text.
    assert (height, width) == (400 + TITLE_HEIGHT, 3 * 400)


def test_annotations_without_area_and_crowd_are_evaluated(
    surface_root, micro_config, tmp_path, monkeypatch
):
    shutil.copytree(surface_root, tmp_path / "data")
    file = tmp_path / "data" / "surface_defects" / "annotations" / "val.json"
    content = json.loads(file.read_text())
    for annotation in content["annotations"]:
        del annotation["area"], annotation["iscrowd"]

    file.write_text(json.dumps(content))
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "data"))
    register_surface_defects()

    assert run(micro_config, tmp_path / "out", "train.max_iter=1") == 0
    assert AP_ROW.search((tmp_path / "out" / "log.txt").read_text())


def test_a_run_is_not_resumed_with_another_order_of_the_data(full_run, micro_config, capsys):
    assert run(micro_config, full_run, "--resume", "train.seed=7", "train.max_iter=8") == 2
    assert "train.seed was 42, is 7" in capsys.readouterr().err


@pytest.mark.parametrize("content", ["model = (", "train = dict(max_iter=3)"])
def test_a_config_that_is_none_is_one_line(tmp_path, capsys, content):
    (tmp_path / "config.py").write_text(content)
    assert train_net.run(["--config-file", str(tmp_path / "config.py")]) == 2
    assert re.match(
        "error: .*config.py (cannot be loaded: SyntaxError|defines no model)",
        capsys.readouterr().err,
    )


def test_overrides_may_stand_on_both_sides_of_a_flag(micro_config):
    args = train_net.parse_args(
        ["--config-file", micro_config, "train.seed=1", "--eval-only", "train.max_iter=2"]
    )
    assert args.opts == ["train.seed=1", "train.max_iter=2"] and args.eval_only


def test_an_evaluation_draws_truth_and_detections_of_each_image(
    surface_data, micro_config, tmp_path
):
    weights = tmp_path / "weights.pth"
    torch.save(instantiate(load_config(micro_config).model).state_dict(), weights)
    shown = tmp_path / "shown"
    words = ["--eval-only", "--weights", str(weights), "--show-dir", str(shown)]

    assert run(micro_config, tmp_path / "out", *words) == 0

    names = sorted(path.name for path in (surface_data / "val").iterdir())
    assert sorted(path.name for path in shown.iterdir()) == names

    height, width, _ = read_image(str(shown / names[0])).shape
    assert width == 2 * 480 + 8 and height > 480
    assert "6 images drawn in" in (tmp_path / "out" / "log.txt").read_text()


def test_drawings_need_an_evaluation_that_writes_its_detections(
    surface_data, micro_config, tmp_path, capsys
):
    with pytest.raises(SystemExit):
        train_net.parse_args(["--config-file", micro_config, "--show-dir", "shown"])
    assert (
        "--show-dir shown draws what --eval-only finds: add --eval-only" in capsys.readouterr().err
    )

    weights = tmp_path / "weights.pth"
    torch.save(instantiate(load_config(micro_config).model).state_dict(), weights)
    words = ["--eval-only", "--weights", str(weights), "--show-dir"]

    assert run(micro_config, tmp_path / "out", *words, str(weights)) == 2
    assert "set --show-dir" in capsys.readouterr().err

    words += [str(tmp_path / "shown"), "dataloader.evaluator.output_dir=null"]
    assert run(micro_config, tmp_path / "out", *words) == 2
    assert "dataloader.evaluator.output_dir" in capsys.readouterr().err
    assert not list((tmp_path / "out").glob("inference/*"))  # it is told before the evaluation


def evaluate_only(config, data, output, weights, *words):
    words = ["--eval-only", "--weights", weights, "--val-json", data, *words]
    return run(config, output, *map(str, words), "dataloader.test.num_workers=0")


def test_an_evaluation_puts_the_classes_into_the_order_of_the_data_by_name(
    surface_data, micro_config, tmp_path, capsys
):
    model = instantiate(load_config(micro_config).model)
    names = tuple(SURFACE_DEFECT_CLASSES)
    weights = tmp_path / "weights.safetensors"
    save_weights(model.state_dict(), weights, classes=ClassList(names, (1, 2, 3, 4, 5, 6)))

    content = json.loads((surface_data / "annotations" / "val.json").read_text())
    images = ["--val-images", surface_data / "val"]

    def write(categories, change):
        annotations = [
            {**x, "category_id": change[x["category_id"]]}
            for x in content["annotations"]
            if x["category_id"] in change
        ]
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.json"
        changed = {**content, "categories": categories, "annotations": annotations}
        path.write_text(json.dumps(changed))
        return path

    def results_of(output):
        path = tmp_path / output / "inference" / "coco_instances_results.json"
        found = json.loads(path.read_text())
        return sorted((x["image_id"], x["category_id"], round(x["score"], 4)) for x in found)

    original = surface_data / "annotations" / "val.json"
    assert evaluate_only(micro_config, original, tmp_path / "same", weights, *images) == 0
    log = (tmp_path / "same" / "log.txt").read_text()
    assert "order of the data set" not in log and "does not name" not in log

    # The ids, and with them the order, turned round.
    turned = {i: 7 - i for i in range(1, 7)}
    categories = [{"id": turned[i], "name": name} for i, name in enumerate(names, 1)]
    data = write(categories, turned)
    assert evaluate_only(micro_config, data, tmp_path / "turned", weights, *images) == 0
    log = (tmp_path / "turned" / "log.txt").read_text()
    assert "put into the order of the data set: dent, stain, crack" in log
    expected = sorted((i, turned[c], score) for i, c, score in results_of("same"))
    assert results_of("turned") == expected

    # Two of the six, with ids of their own.
    data = write([{"id": 70, "name": "crack"}, {"id": 90, "name": "pit"}], {4: 70, 2: 90})
    assert evaluate_only(micro_config, data, tmp_path / "part", weights, *images) == 0
    log = (tmp_path / "part" / "log.txt").read_text()
    assert "the data set has 2 of its 6 classes (crack, pit)" in log
    assert {category for _, category, _ in results_of("part")} == {70, 90}

    # One that the weights lack.
    categories = [{"id": i, "name": name} for i, name in enumerate((*names[:5], "weld"), 1)]
    data = write(categories, {i: i for i in range(1, 7)})
    capsys.readouterr()
    assert evaluate_only(micro_config, data, tmp_path / "weld", weights, *images) == 2
    assert "lacks 1 of the data set's 6 classes: weld;" in capsys.readouterr().err
    flag = "--ignore-class-names"
    assert evaluate_only(micro_config, data, tmp_path / "on", weights, *images, flag) == 0
    assert results_of("on") == results_of("same")


def test_own_records_without_names_of_classes_train(micro_config, surface_data, tmp_path):
    content = json.loads((surface_data / "annotations" / "val.json").read_text())
    records = []
    for image in content["images"]:
        path = surface_data / "val" / image["file_name"]
        boxes = [x for x in content["annotations"] if x["image_id"] == image["id"]]
        entries = [
            {"bbox": x["bbox"], "bbox_mode": BoxMode.XYWH_ABS, "category_id": x["category_id"] - 1}
            for x in boxes
        ]
        records.append({"file_name": str(path), "annotations": entries})

    DatasetCatalog.register("nameless", lambda: records)
    names = [f"dataloader.{part}.dataset.names=nameless" for part in ("train", "test")]
    try:
        assert run(micro_config, tmp_path, "train.max_iter=1", *names) == 0
    finally:
        DatasetCatalog.remove("nameless")
        MetadataCatalog.pop("nameless", None)


@pytest.mark.parametrize("words", [["train.max_iter=1"], ["--eval-only", "--weights", WEIGHTS]])
def test_no_test_set_is_an_error(micro_config, surface_data, tmp_path, capsys, words):
    words = [*map(str, words), "dataloader.test.dataset.names=[]"]
    assert run(micro_config, tmp_path, *words) == 2
    assert capsys.readouterr().err == (
        "error: dataset.names is empty; name a registered data set, or several\n"
    )
