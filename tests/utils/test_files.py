"""Files are complete or not there, and no output takes the name of another file."""

from __future__ import annotations

import os

import cv2
import numpy as np
import pytest
from PIL import Image, JpegImagePlugin

from salience_detr.utils.files import (
    FileNameError,
    UsedPaths,
    check_output_dir,
    write_image,
    write_text,
    written_whole,
)


def test_a_write_that_fails_keeps_the_file_before(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("before")

    with pytest.raises(RuntimeError), written_whole(path) as temporary:
        temporary.write_text("after")
        raise RuntimeError

    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_a_temporary_file_is_new_and_gets_the_usual_permissions(tmp_path):
    path = tmp_path / "a.txt"
    names = set()
    for _ in range(2):
        with written_whole(path) as temporary:
            assert temporary.exists() and temporary.parent == tmp_path
            names.add(temporary.name)
            temporary.write_text("x")
    (tmp_path / "usual").touch()

    assert len(names) == 2
    assert path.stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_a_link_that_another_user_prepared_is_not_followed(tmp_path):
    (tmp_path / "target").write_text("before")
    for name in ("a.txt.tmp", f".write_test.{os.getpid()}"):
        (tmp_path / name).symlink_to(tmp_path / "target")

    write_text(tmp_path / "a.txt", "after")
    check_output_dir(tmp_path)

    assert (tmp_path / "target").read_text() == "before"


@pytest.mark.parametrize("name", ["a" * 255, "ä" * 127, "a" * 251 + ".csv"])
def test_a_file_may_have_the_longest_name_that_there_is(name, tmp_path):
    write_text(tmp_path / name, "x")
    assert os.listdir(tmp_path) == [name]


def test_a_check_of_an_output_folder_leaves_nothing(tmp_path):
    check_output_dir(tmp_path / "new")
    with pytest.raises(OSError, match="MiB free"):
        check_output_dir(tmp_path / "new", needed_bytes=2**60)
    assert list((tmp_path / "new").iterdir()) == []


@pytest.mark.parametrize("ending", [".png", ".BMP", ".tiff", ".ppm"])
def test_an_image_is_written_as_rgb_in_the_format_of_its_ending(ending, tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)

    write_image(tmp_path / "new" / f"ä{ending}", image)

    assert np.array_equal(np.asarray(Image.open(tmp_path / "new" / f"ä{ending}")), image)


def test_a_jpeg_image_has_the_quality_asked_for(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    _, expected = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 40])

    write_image(tmp_path / "a.jpg", image, quality=40, full_color=False)

    assert (tmp_path / "a.jpg").read_bytes() == expected.tobytes()


def test_a_jpeg_image_has_the_color_of_each_pixel(tmp_path):
    write_image(tmp_path / "a.jpg", np.zeros((16, 16, 3), np.uint8))
    with Image.open(tmp_path / "a.jpg") as image:
        assert JpegImagePlugin.get_sampling(image) == 0  # PIL's number of 4:4:4


@pytest.mark.parametrize("name", ["ä" * 126 + ".png", "folder.png"])
def test_a_name_that_the_file_system_refuses_is_told_apart(name, tmp_path):
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(FileNameError, match=r"cannot write the image .*\.png: "):
        write_image(tmp_path / name, np.zeros((2, 2, 3), np.uint8))
    assert os.listdir(tmp_path) == ["folder.png"]


def test_an_image_that_cannot_be_written_leaves_nothing(tmp_path):
    with pytest.raises(ValueError, match="at most 65500 pixels"):
        write_image(tmp_path / "a.jpg", np.zeros((1, 65501, 3), np.uint8))
    assert list(tmp_path.iterdir()) == []

    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"file.a\.png"):
        write_image(tmp_path / "file" / "a.png", np.zeros((2, 2, 3), np.uint8))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_paths_in_use_get_a_number_whatever_their_case(tmp_path):
    used = UsedPaths([tmp_path / "a.jpg"])
    wanted = ["a.jpg", "b.jpg", "B.jpg", "a_2.jpg", "a.jpg", "a.png"]

    names = [used.unused_path(tmp_path / name).name for name in wanted]

    assert names == ["a_2.jpg", "b.jpg", "B_2.jpg", "a_2_2.jpg", "a_3.jpg", "a.png"]


def test_all_files_of_a_stem_get_the_same_number(tmp_path):
    used = UsedPaths([tmp_path / "a_mask.png"])

    def paths_of(stem):
        return [tmp_path / f"{stem}.png", tmp_path / f"{stem}_mask.png"]

    assert used.unused_stem("a", paths_of) == "a_2"
    assert used.unused_stem("a_2", paths_of) == "a_2_2"
