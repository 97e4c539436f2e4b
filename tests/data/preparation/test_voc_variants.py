"""XML files in the folders of other programs find the images that they mean."""

from __future__ import annotations

import json
import shutil

import pytest
from PIL import Image

from salience_detr.cli.convert_dataset import main

BOX = (11, 6, 30, 25)


def write_image(path, size=(100, 50)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size).save(path)


def write_xml(path, *elements, name="pit", box=BOX):
    path.parent.mkdir(parents=True, exist_ok=True)
    corners = zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
    bndbox = "".join(f"<{key}>{value}</{key}>" for key, value in corners)
    item = f"<object><name>{name}</name><bndbox>{bndbox}</bndbox></object>"
    path.write_text(f"<annotation>{''.join(elements)}{item}</annotation>")


def convert(source, *flags):
    """Convert a data set, and return the exit code and the names of images by split."""
    output = source.with_name(f"{source.name}_out")
    shutil.rmtree(output, ignore_errors=True)
    code = main(["voc", str(source), "--output", str(output), "--workers", "0", *flags])

    names = {}
    for path in sorted(output.rglob("*.json")):
        content = json.loads(path.read_text())
        assert len(content["annotations"]) == len(content["images"])
        split = path.stem.removeprefix("instances_")
        names[split] = [image["file_name"] for image in content["images"]]
    return code, names


ALL = ("--val-fraction", "0")


def test_images_lie_in_folders_of_the_classes(tmp_path):
    root = tmp_path / "neu"
    for split in ("train", "validation"):
        for label in ("pit", "dent"):
            for number in (1, 2):
                stem = f"{label}_{number}"
                write_image(root / split / "images" / label / f"{stem}.jpg")
                elements = (f"<folder>{label}</folder>", f"<filename>{stem}</filename>")
                write_xml(root / split / "annotations" / f"{stem}.xml", *elements, name=label)

    expected = [f"{label}/{label}_{n}.jpg" for label in ("dent", "pit") for n in (1, 2)]
    folder = root / "train"
    flags = ("--annotations", str(folder / "annotations"), "--images", str(folder / "images"))
    assert convert(folder, *flags, *ALL) == (0, {"train": expected})
    assert convert(folder, *ALL) == (0, {"train": expected})

    # The folder around both splits: images of the same names are kept apart.
    code, names = convert(root)
    assert code == 0
    assert names["train"] == [f"train/images/{name}" for name in expected]
    assert names["val"] == [f"validation/images/{name}" for name in expected]


def test_xml_files_lie_beside_their_images(tmp_path):
    for folder in ("flat", "nested/a", "nested/b"):
        for number in (1, 2):
            write_image(tmp_path / folder / f"{number}.jpg")
            write_xml(tmp_path / folder / f"{number}.xml", f"<filename>{number}.jpg</filename>")
    assert convert(tmp_path / "flat", *ALL) == (0, {"train": ["1.jpg", "2.jpg"]})
    expected = ["a/1.jpg", "a/2.jpg", "b/1.jpg", "b/2.jpg"]
    assert convert(tmp_path / "nested", *ALL) == (0, {"train": expected})


def test_frames_of_one_name_are_those_of_the_same_folder(tmp_path, capsys):
    root = tmp_path / "frames"
    for camera in ("cam1", "cam2"):
        write_image(root / "images" / camera / "0001.jpg")
        write_xml(root / "annotations" / camera / "0001.xml", "<filename>0001.jpg</filename>")
    assert convert(root, *ALL) == (0, {"train": ["cam1/0001.jpg", "cam2/0001.jpg"]})

    # What is told by nothing is not guessed.
    shutil.rmtree(root / "annotations" / "cam2")
    (root / "annotations" / "cam1" / "0001.xml").rename(root / "annotations" / "0001.xml")
    (root / "annotations" / "cam1").rmdir()
    assert convert(root, *ALL) == (2, {})
    assert "several images could be meant: cam1/0001.jpg, cam2/0001" in capsys.readouterr().err

    # A path of the annotator's computer tells it.
    write_xml(root / "annotations" / "0001.xml", r"<path>D:\x\cam2\0001.jpg</path>")
    assert convert(root, *ALL) == (0, {"train": ["cam2/0001.jpg"]})


def test_splits_are_folders_as_roboflow_exports_them(tmp_path, capsys):
    root = tmp_path / "robo"
    for split, number in (("train", 3), ("valid", 1), ("test", 1)):
        for index in range(number):
            stem = f"{split}{index}_jpg.rf.1a2b3c"
            write_image(root / split / f"{stem}.jpg")
            elements = ("<folder></folder>", f"<filename>{stem}.jpg</filename>")
            write_xml(root / split / f"{stem}.xml", *elements)
    code, names = convert(root)
    assert code == 0 and {name: len(files) for name, files in names.items()} == {
        "train": 3, "val": 1, "test": 1
    }  # fmt: skip

    assert convert(root, "--val-fraction", "0.3")[0] == 2
    assert "has train and val and test: leave it out" in capsys.readouterr().err

    # Without the part for validation, it is drawn from the training part.
    shutil.rmtree(root / "valid")
    shutil.rmtree(root / "test")
    _, names = convert(root, "--val-fraction", "0.3")
    assert [len(names["train"]), len(names["val"])] == [2, 1]

    write_xml(root / "stray.xml")
    assert convert(root)[0] == 2
    assert "are in none of the folders of train" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("filename", "expected"),
    [
        ("x.png", "x.png"),
        ("x.jpg", "x.jpg"),
        ("X.PNG", "x.png"),
        (r"C:\me\x.png", "x.png"),
        ("/home/me/x.png", "x.png"),
        ("old.png", "x.png"),  # renamed together with its image
        ("x", "x.jpg"),
        ("", "x.jpg"),
        ("x.bmp", "x.jpg"),
    ],
)
def test_the_file_that_the_xml_names_comes_before_one_of_another_ending(
    tmp_path, capsys, filename, expected
):
    root = tmp_path / "v"
    write_image(root / "JPEGImages" / "x.jpg")
    write_image(root / "JPEGImages" / "x.png")
    write_xml(root / "Annotations" / "x.xml", f"<filename>{filename}</filename>")
    assert convert(root, *ALL) == (0, {"train": [expected]})

    printed = capsys.readouterr().out
    assert "1 images have no .xml file" in printed
    is_open = filename in ("x", "", "x.bmp")
    assert ("fit images of several endings" in printed) == is_open


def test_an_xml_file_of_another_name_takes_the_image_that_it_names(tmp_path):
    write_image(tmp_path / "v" / "images" / "x_jpg.rf.1a2b.jpg")
    write_xml(tmp_path / "v" / "xml" / "1.xml", "<filename>x_jpg.rf.1a2b</filename>")
    assert convert(tmp_path / "v", *ALL) == (0, {"train": ["x_jpg.rf.1a2b.jpg"]})


@pytest.mark.parametrize(
    ("box", "expected", "line"),
    [
        ((11, 6, 130, 25), [10, 5, 90, 20], "1 boxes reached out of their image and were clipped"),
        ((0, 6, 30, 25), [0, 5, 30, 20], "1 boxes have a corner at 0: if corners count from 0"),
        ((30, 6, 11, 25), None, "has the box [30.0, 6.0, 11.0, 25.0], its first corner is beyond"),
        ((11, 6, 30, 25), [10, 5, 20, 20], "2 boxes"),
    ],
)
def test_unusual_corners_are_counted_in_the_report(tmp_path, capsys, box, expected, line):
    for stem, corners in (("a", BOX), ("b", box)):
        write_image(tmp_path / "v" / f"{stem}.jpg")
        write_xml(tmp_path / "v" / f"{stem}.xml", box=corners)
    words = ["voc", str(tmp_path / "v"), "--output", str(tmp_path / "o"), "--workers", "0", *ALL]
    assert main(words) == 0
    assert line in capsys.readouterr().out
    content = json.loads((tmp_path / "o" / "annotations" / "instances_train.json").read_text())
    boxes = [x["bbox"] for x in content["annotations"] if x["image_id"] == 2]
    assert boxes == ([expected] if expected else [])


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda root: shutil.rmtree(root / "JPEGImages"), "no image of train is left"),
        (lambda root: write_xml(root / "Annotations" / "a.xml", box=(9, 9, 1, 1)), "no box of"),
        (
            lambda root: (root / "Annotations" / "a.xml").write_text("<annotations/>"),
            "<annotations>",
        ),
    ],
)
def test_nothing_is_written_where_nothing_is_left(tmp_path, capsys, break_it, message):
    root = tmp_path / "v"
    write_image(root / "JPEGImages" / "a.jpg")
    write_xml(root / "Annotations" / "a.xml")
    break_it(root)
    assert convert(root) == (2, {})
    assert message in capsys.readouterr().err
    assert not (tmp_path / "v_out").exists()


@pytest.mark.parametrize("fraction", ["1", "1.5", "-1", "nan", "0.01"])
def test_fractions_that_leave_a_side_empty_are_refused(tmp_path, capsys, fraction):
    for stem in "abc":
        write_image(tmp_path / "v" / f"{stem}.jpg")
        write_xml(tmp_path / "v" / f"{stem}.xml")
    assert convert(tmp_path / "v", "--val-fraction", fraction) == (2, {})
    assert "error: --val-fraction" in capsys.readouterr().err


def test_the_devkit_around_a_data_set_is_searched_for_its_lists(tmp_path, capsys):
    kit = tmp_path / "kit"
    for year, stems in (("VOC2007", "abc"), ("VOC2012", "de")):
        root = kit / "VOCdevkit" / year
        for stem in stems:
            write_image(root / "JPEGImages" / f"{stem}.jpg")
            write_xml(root / "Annotations" / f"{stem}.xml")
        (root / "ImageSets" / "Main").mkdir(parents=True)
        (root / "ImageSets" / "Main" / "train.txt").write_text("\n".join(stems[:-1]))
        (root / "ImageSets" / "Main" / "val.txt").write_text(stems[-1])

    assert convert(kit)[0] == 2
    assert "holds several data sets; name one of" in capsys.readouterr().err
    shutil.rmtree(kit / "VOCdevkit" / "VOC2012")
    assert convert(kit) == (0, {"train": ["a.jpg", "b.jpg"], "val": ["c.jpg"]})


def test_neu_det_as_it_is_downloaded_has_12_images_and_27_boxes(shared, tmp_path):
    source = shared("field/24-voc-class-folders/24-voc-class-folders") / "train"
    words = ["voc", str(source), "--output", str(tmp_path), "--workers", "0"]
    flags = ("--annotations", str(source / "annotations"), "--images", str(source / "images"))
    assert main([*words, *flags]) == 0
    contents = [json.loads(path.read_text()) for path in tmp_path.rglob("*.json")]
    assert sum(len(content["images"]) for content in contents) == 12
    assert sum(len(content["annotations"]) for content in contents) == 27

    # Images of another folder: nothing is left.
    wrong = ("--images", str(source.parent / "validation" / "images"))
    assert main([*words[:3], str(tmp_path / "nothing"), *flags[:2], *wrong]) == 2
    assert not (tmp_path / "nothing").exists()
