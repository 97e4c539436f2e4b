"""File names from other computers are found below the folder of the images, or not at all."""

from __future__ import annotations

import json
import logging

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from salience_detr.data import DatasetError, load_dataset
from salience_detr.data.datasets import check_files
from salience_detr.data.image_files import describe_folder, locate_images

FILES = (
    "plain.jpg", "cam1/0001.jpg", "cam2/0001.jpg", "sub/IMG.JPG", "x y/ü 1.jpg", "deep/er/z.jpg",
    "train/t.jpg", "val/v.jpg",
)  # fmt: skip


@pytest.fixture
def root(tmp_path):
    for name in FILES:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return tmp_path


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("C:\\Users\\me\\data\\cam1\\0001.jpg", "cam1/0001.jpg"),
        ("D:/x/sub/img.jpg", "sub/IMG.JPG"),
        ("/home/me/cam2/0001.jpg", "cam2/0001.jpg"),
        ("/data/upload/3/plain.jpg", "plain.jpg"),
        ("/data/upload/3/deadbeef-plain.jpg", "plain.jpg"),
        ("/data/local-files/?d=deep/er/z.jpg", "deep/er/z.jpg"),
        ("x%20y/%C3%BC%201.jpg", "x y/ü 1.jpg"),
        ("images%5Ccam2%5C0001.jpg", "cam2/0001.jpg"),
        ("https://host.org/a/z.jpg?w=100", "deep/er/z.jpg"),
        ("file:///C:/me/z.jpg", "deep/er/z.jpg"),
    ],
)
def test_a_name_of_another_computer_is_found_by_its_last_parts(root, name, place):
    located = locate_images(root, [name])
    assert located.paths[name] == root / place
    assert located.moved == {name: place} and not located.missing


def test_names_that_are_right_stay(root):
    located = locate_images(root, list(FILES))
    assert located.paths == {name: root / name for name in FILES}
    assert not located.moved and not located.missing


@pytest.mark.parametrize(
    ("names", "remark"),
    [
        (["/x/0001.jpg"], "it could be cam1/0001.jpg or cam2/0001.jpg"),
        (["/x/1/z.jpg", "/x/2/z.jpg"], "several names end like deep/er/z.jpg"),
        (["plain.jpg", "/x/plain.jpg"], "several names end like plain.jpg"),
        # There is a folder train, which lacks it.
        (["train/v.jpg"], ""),
        (["C:\\data\\train\\v.jpg"], ""),
        # Plain names lie beside each other.
        (["plain.jpg", "z.jpg"], ""),
        (["/x/nothing.jpg"], ""),
        (["a\0b"], ""),
        (["x" * 5000], ""),
        (["\\" * 5000], ""),
        ([".."], ""),
    ],
)
def test_a_name_that_could_be_another_image_is_missing(root, names, remark):
    located = locate_images(root, names)
    assert not located.moved
    assert located.missing[names[-1]] == remark


def test_a_folder_is_described_by_what_lies_there(root, tmp_path):
    described = describe_folder(root)
    assert described == f"{root} holds plain.jpg, cam1/0001.jpg, cam2/0001.jpg, deep/er/z.jpg, ..."
    assert describe_folder(root / "nowhere") == f"there is no folder {root / 'nowhere'}"


def test_loading_says_where_images_were_found_and_what_lies_there(root, caplog):
    names = ["C:\\me\\cam1\\0001.jpg", "gone.jpg"]
    images = [{"id": i, "file_name": name, "width": 9, "height": 9} for i, name in enumerate(names)]
    content = {"images": images, "annotations": [], "categories": [{"id": 1, "name": "pit"}]}
    path = root / "x.json"
    path.write_text(json.dumps(content))

    with caplog.at_level(logging.WARNING, "salience_detr"):
        records = load_dataset("moved", json_file=str(path), image_root=str(root))
    assert records[0]["file_name"] == str(root / "cam1" / "0001.jpg")
    assert "1 of 2 images are found by the last parts of their names" in caplog.text

    with pytest.raises(DatasetError, match=r"1 of 2 images are missing.*holds plain\.jpg, x\.json"):
        check_files(records, "moved")
    DatasetCatalog.remove("moved")
    MetadataCatalog.remove("moved")
