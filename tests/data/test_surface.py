"""The generated data set: exact, repeatable, never half there."""

from __future__ import annotations

import numpy as np
import pytest
from pycocotools.coco import COCO

from salience_detr.data import DatasetError
from salience_detr.data.surface import (
    SURFACE_DEFECT_CLASSES,
    generate_surface_defects,
    render_surface,
)
from salience_detr.data.surface.dataset import _crop
from salience_detr.data.surface.defects import DEFECTS, VISIBLE


def generate(root, **options):
    arguments = {"split": "val", "num_images": 3, "image_size": (64, 80), "progress": False}
    return generate_surface_defects(root, **(arguments | options))


def contents(root):
    return {
        p.relative_to(root).as_posix(): p.read_bytes()
        for p in sorted(root.rglob("*"))
        if p.is_file()
    }


def test_the_same_seed_gives_the_same_bytes_whatever_the_workers(tmp_path):
    generate(tmp_path / "a"), generate(tmp_path / "b", workers=2)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_more_images_continue_the_same_sequence(tmp_path):
    generate(tmp_path / "few"), generate(tmp_path / "many", num_images=5)
    few, many = contents(tmp_path / "few"), contents(tmp_path / "many")
    assert all(many[name] == few[name] for name in few if name.endswith(".jpg"))


def test_splits_and_seeds_differ(tmp_path):
    for name, options in {"val": {}, "train": {"split": "train"}, "seed": {"seed": 1}}.items():
        generate(tmp_path / name, **options)
    images = [contents(tmp_path / name / split)["000001.jpg"] for name, split in
                (("val", "val"), ("train", "train"), ("seed", "val"))]  # fmt: skip
    assert len(set(images)) == 3


def test_the_annotations_are_valid_coco_inside_the_images(tmp_path):
    coco = COCO(str(generate(tmp_path, num_images=12)))
    assert [c["name"] for c in coco.loadCats(coco.getCatIds())] == list(SURFACE_DEFECT_CLASSES)
    assert len(coco.getImgIds()) == 12 and len(coco.getAnnIds()) > 12
    for annotation in coco.loadAnns(coco.getAnnIds()):
        x, y, width, height = annotation["bbox"]
        assert (
            x >= 0 and y >= 0 and x + width <= 80 and y + height <= 64 and min(width, height) >= 4
        )
        assert annotation["area"] == width * height


@pytest.mark.parametrize("name", SURFACE_DEFECT_CLASSES)
def test_a_box_encloses_the_visible_pixels_exactly(name):
    for seed in range(5):
        defect = DEFECTS[name](np.random.default_rng(seed), 1.0, 0.0)
        x0, y0, x1, y1 = defect.box()
        visible = defect.strength > VISIBLE
        assert not visible[:y0].any() and not visible[y1:].any()
        assert not visible[:, :x0].any() and not visible[:, x1:].any()
        assert (
            visible[y0].any()
            and visible[y1 - 1].any()
            and visible[:, x0].any()
            and visible[:, x1 - 1].any()
        )


def test_a_defect_over_the_border_is_cut_and_its_box_with_it():
    defect = DEFECTS["stain"](np.random.default_rng(0), 1.0, 0.0)
    size = defect.strength.shape[1]
    left = -size // 5
    cropped = _crop(defect, left, 0, 400, 400)
    assert cropped.strength.shape[1] == size + left
    assert np.array_equal(cropped.strength, defect.strength[:400, -left:])
    assert _crop(defect, 400, 0, 400, 400) is None


def test_images_hold_up_to_the_wanted_number_of_defects_and_sometimes_none():
    counts = [len(render_surface(np.random.default_rng(i), 320, 320).boxes) for i in range(40)]
    assert min(counts) == 0 and max(counts) <= 12 and 2 < np.mean(counts) < 6


@pytest.mark.parametrize("size", [(32, 32), (33, 97), (200, 150)])
def test_any_size_is_drawn(size):
    sample = render_surface(np.random.default_rng(0), *size)
    assert sample.image.shape == (*size, 3) and sample.image.dtype == np.uint8


def test_a_complete_split_is_kept_and_an_incomplete_one_made_again(tmp_path):
    path = generate(tmp_path)
    image = tmp_path / "val" / "000002.jpg"
    stamp, content = path.stat().st_mtime_ns, image.read_bytes()
    generate(tmp_path)
    assert path.stat().st_mtime_ns == stamp
    image.unlink()
    generate(tmp_path)
    assert image.read_bytes() == content


def test_other_arguments_need_force(tmp_path):
    generate(tmp_path)
    with pytest.raises(DatasetError, match=r"'num_images': 3.*'num_images': 4.*--force"):
        generate(tmp_path, num_images=4)
    generate(tmp_path, num_images=4, force=True)
    assert len(list((tmp_path / "val").glob("*.jpg"))) == 4


def test_an_interruption_leaves_the_earlier_split_as_it_was(tmp_path, monkeypatch):
    generate(tmp_path)
    before = contents(tmp_path)

    def interrupted(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("salience_detr.data.surface.dataset._write_image", interrupted)
    with pytest.raises(KeyboardInterrupt):
        generate(tmp_path, num_images=9, force=True)
    assert contents(tmp_path) == before


def test_broken_annotations_and_foreign_files_are_not_overwritten(tmp_path):
    path = generate(tmp_path)
    path.write_text(path.read_text()[:100])
    with pytest.raises(DatasetError, match="broken or was not made by this tool"):
        generate(tmp_path)
    path.unlink()
    with pytest.raises(DatasetError, match="holds files already"):
        generate(tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "test"}, "split is 'test'"),
        ({"num_images": 0}, "number of images is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"image_size": (64, 8)}, "image size is 64x8"),
    ],
)
def test_arguments_that_make_no_sense_are_named(tmp_path, options, message):
    with pytest.raises(DatasetError, match=message):
        generate(tmp_path, **options)
    assert not any(tmp_path.iterdir())
