"""Finding inputs, and reading images ahead in batches."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from salience_detr.data import ImageReadError
from salience_detr.data.value_range import ValueRange
from salience_detr.inference import inputs
from salience_detr.inference.inputs import ImageReader, collect_inputs, image_size


@pytest.fixture
def save(tmp_path):
    """Return a function that writes an image of (width, height); its number is its gray value."""
    count = 0

    def write(width, height, name=None):
        nonlocal count
        count += 1
        path = tmp_path / (name or f"{count:03d}.png")
        Image.new("L", (width, height), count).save(path)
        return path

    return write


def test_a_pattern_that_fits_folders_alone_means_their_images(save, tmp_path, monkeypatch):
    for name in ("line1/a.png", "line2/day/b.png"):
        (tmp_path / name).parent.mkdir(parents=True)
        save(4, 4, name)
    (tmp_path / "line2" / "notes.txt").write_text("no image")
    monkeypatch.chdir(tmp_path)
    inputs = collect_inputs(["line*"])
    assert [str(path) for path in inputs.files] == ["line1/a.png", "line2/day/b.png"]


def test_folders_patterns_and_files_are_collected_once_each(save, tmp_path):
    (tmp_path / "sub").mkdir()
    names = ["b.png", "a.JPG", "sub/ü ö.png"]
    for name in names:
        save(4, 4, name)

    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "film.MP4").write_bytes(b"")
    inputs = collect_inputs([str(tmp_path), str(tmp_path / "*.png"), str(tmp_path / "none*")])

    names = [str(path.relative_to(tmp_path)) for path in inputs.files]
    assert names == ["a.JPG", "b.png", "film.MP4", "sub/ü ö.png"]
    assert len(inputs.missing) == 1 and "none*: there is no such image" in inputs.missing[0]
    assert inputs.remarks == [
        f"{tmp_path}: 1 file was not looked at, being no images or videos that can be read "
        "(.txt: 1)"
    ]

    # A file that is named itself is taken, whatever its ending.
    notes = tmp_path / "notes.txt"
    assert collect_inputs([str(notes)]).files == [notes]


def test_files_have_their_path_below_the_folder_or_pattern(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("in/a/x.png", "in/b/x.png", "in/y.png"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 6)).save(name)

    def named(*patterns, listed=()):
        inputs = collect_inputs(patterns, listed)
        return [inputs.names[path].as_posix() for path in inputs.files]

    every = ["a/x.png", "b/x.png", "y.png"]
    assert named("in") == named("in/**/*.png") == named(str(tmp_path / "in")) == every
    assert named("**/x.png") == ["in/a/x.png", "in/b/x.png"]
    assert named("./in/?/x.png") == every[:2] and named("in/a/*.png") == ["x.png"]
    assert named("in/a/x.png", "in/b/x.png") == ["x.png", "x.png"]

    # The files of a list are named from the folder that they have in common.
    assert named(listed=["in/a/x.png", str(tmp_path / "in/b/x.png")]) == every[:2]
    assert named(listed=["in/a/x.png"]) == ["x.png"]
    inputs = collect_inputs(["in/y.png"], ["none.png", "in/a"])
    assert inputs.missing == ["--input -: there is no such image, video or folder: none.png"]


def test_images_of_any_ending_are_found_by_their_signature(save, tmp_path):
    names = ["a.jfif", "b.GIF", "c.tga", "d.pnm", "e.dib", "f.jp2", "g.avif", "i.mpo"]
    for name in names:
        Image.new("RGB", (8, 6)).save(tmp_path / name)
    for name in ("none", "shot.2024"):
        (tmp_path / name).write_bytes((tmp_path / "a.jfif").read_bytes())

    (tmp_path / "code.ts").write_text("export")
    (tmp_path / "film.ts").write_bytes(b"G@")
    (tmp_path / "numbers").write_text("P5 is no image")
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / ".hidden").write_bytes(b"")

    inputs = collect_inputs([str(tmp_path)])
    assert [x.name for x in inputs.files] == sorted([*names, "none", "shot.2024", "film.ts"])
    assert "3 files were not looked at" in inputs.remarks[0]
    assert "(no ending: 2, .ts: 1)" in inputs.remarks[0]


def test_a_folder_without_an_image_says_what_lies_there(tmp_path):
    (tmp_path / "a.heic").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match=r"no such image.*1 file was not.*\.heic: 1"):
        collect_inputs([str(tmp_path)])


def positions(reader):
    return [[reader.paths.index(loaded.path) for loaded in batch] for batch in reader]


def test_images_come_in_order_with_their_content(save):
    paths = [save(8, 6) for _ in range(20)]
    seen = []
    for batch in ImageReader(paths, batch_size=3, num_threads=3):
        seen += [loaded.image[0, 0, 0] for loaded in batch]
    assert seen == list(range(1, 21))


def test_batches_are_of_images_of_one_shape_that_follow_each_other(save):
    sizes = [(80, 60), (160, 120), (82, 60), (60, 80), (80, 60), (80, 60), (80, 60), (80, 60)]
    reader = ImageReader([save(*size) for size in sizes], batch_size=3)
    assert positions(reader) == [[0, 1, 2], [3], [4, 5, 6], [7]]


def test_an_image_that_cannot_be_read_stands_alone(save, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"")
    cut = tmp_path / "cut.png"
    Image.fromarray(np.random.randint(0, 255, (8, 8, 3), np.uint8)).save(cut)
    cut.write_bytes(cut.read_bytes()[:100])  # its size can be read, its pixels cannot
    unsized = [tmp_path / "broken.png", tmp_path / "none.png"]
    paths = [save(8, 8), *unsized, save(8, 8), cut, save(8, 8)]

    assert positions(ImageReader(paths, batch_size=4)) == [[0], [1], [2], [3, 4, 5]]

    errors = []
    for batch in ImageReader(paths, batch_size=4):
        errors += [x.path for x in batch if isinstance(x.image, ImageReadError)]

    assert errors == [paths[1], paths[2], paths[4]]


def test_rotated_images_have_their_exif_corrected_size(tmp_path):
    # Orientation 6 is a rotation by 90 degrees.
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("L", (30, 20)).save(tmp_path / "turned.png", exif=exif)
    assert image_size(tmp_path / "turned.png") == (20, 30)
    assert image_size(tmp_path / "none.png") == (0, 0)


@pytest.fixture
def watched(monkeypatch):
    """Return the numbers of the images whose reading has begun, in order."""
    begun = []
    lock = threading.Lock()

    def read(name, **_):
        with lock:
            begun.append(int(name.rpartition("/")[2].partition(".")[0]))
        return np.asarray(Image.open(name).convert("RGB"))

    monkeypatch.setattr(inputs, "read_image", read)
    return begun


def test_reading_is_ahead_of_the_work_but_not_far(save, watched):
    reader = iter(ImageReader([save(8, 8) for _ in range(50)], num_threads=2))
    next(reader)

    # The threads need a moment; after that, they must not go on.
    deadline = time.monotonic() + 30
    while len(watched) < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.05)

    assert sorted(watched) == [1, 2, 3, 4]  # two for each thread

    reader.close()


def test_large_images_are_not_in_memory_together(save, watched):
    reader = iter(ImageReader([save(40, 40) for _ in range(4)], num_threads=4, max_pixels=1000))
    # No two images of 1,600 pixels fit into memory, so each is read when it is asked for.
    for count in (1, 2, 3):
        batch = next(reader)
        assert len(batch) == 1
        time.sleep(0.05)
        assert len(watched) == count

    first = batch
    next(reader)
    assert first == []  # was emptied before the next was read
    # Two images of 1,600 pixels fit.
    paths = [save(40, 40) for _ in range(4)]
    assert positions(ImageReader(paths, batch_size=4, max_pixels=3200)) == [[0, 1], [2, 3]]


def test_no_images_are_no_batches():
    assert positions(ImageReader([])) == []


def test_deep_images_of_a_run_are_scaled_by_one_range(tmp_path):
    gray = np.arange(64 * 64).reshape(64, 64) % 256
    value_range = ValueRange([0, 4095])
    for shift in (0, 2, 4):
        Image.fromarray((gray << shift).astype(np.uint16)).save(tmp_path / f"{shift}.png")

    reader = ImageReader(sorted(tmp_path.iterdir()), value_range=value_range)
    brightest = [int(loaded.image.max()) for batch in reader for loaded in batch]
    assert brightest == [15, 63, 255]
