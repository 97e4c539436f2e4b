"""Images in all the forms that users have them in."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from salience_detr.data.images import ImageReadError, as_batch, to_rgb

COLORS = np.array([[[10, 20, 30], [40, 50, 60]]], np.uint8)  # 1 x 2 pixels


def test_bgr_is_turned_where_it_is_said():
    assert np.array_equal(to_rgb(COLORS[..., ::-1], "BGR"), COLORS)
    assert np.array_equal(to_rgb(COLORS, "RGB"), COLORS)
    assert np.array_equal(to_rgb(torch.from_numpy(COLORS).permute(2, 0, 1).flip(0), "BGR"), COLORS)


def test_the_order_does_not_touch_files_and_pil_images(tmp_path):
    Image.fromarray(COLORS).save(tmp_path / "a.png")
    assert np.array_equal(to_rgb(tmp_path / "a.png", "BGR"), COLORS)
    assert np.array_equal(to_rgb(Image.fromarray(COLORS), "BGR"), COLORS)


def test_an_unknown_order_is_described():
    with pytest.raises(ValueError, match='"RGB" or "BGR", not \'bgr\''):
        to_rgb(COLORS, "bgr")


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float16])
def test_tensors_are_channels_first_and_floats_lie_in_the_unit_interval(dtype):
    tensor = torch.from_numpy(COLORS).permute(2, 0, 1)
    tensor = tensor if dtype == torch.uint8 else (tensor / 255).to(dtype)
    assert np.array_equal(to_rgb(tensor), COLORS)


def test_gray_tensors_get_three_channels():
    assert np.array_equal(to_rgb(torch.tensor([[0.0, 1.0]])), [[[0, 0, 0], [255, 255, 255]]])
    assert to_rgb(torch.zeros(1, 4, 5, dtype=torch.uint8)).shape == (4, 5, 3)


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (torch.full((3, 2, 2), 200.0), "reaches from 200 to 200"),
        (torch.full((3, 2, 2), float("nan")), "reaches from nan"),
        (torch.zeros(2, 2, 3), r"not \(2, 2, 3\)"),
        (torch.zeros(3, 0, 2), r"not \(3, 0, 2\)"),
        (torch.zeros(3, 2, 2, dtype=torch.int64), "torch.int64"),
    ],
)
def test_tensors_that_are_no_images_are_described(tensor, message):
    with pytest.raises(ValueError, match=message):
        to_rgb(tensor)


@pytest.mark.parametrize("thing", [None, 5, {"image": 1}])
def test_what_is_no_image_at_all_is_named(thing):
    with pytest.raises(TypeError, match=type(thing).__name__):
        to_rgb(thing)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ImageReadError, match=r"none\.jpg"):
        to_rgb(tmp_path / "none.jpg")


def test_batches_are_told_from_single_images():
    assert (
        as_batch(COLORS) is None
        and as_batch("a.jpg") is None
        and as_batch(torch.zeros(3, 4, 4)) is None
    )
    assert (
        len(as_batch(np.zeros((2, 4, 4, 3))))
        == len(as_batch(torch.zeros(2, 3, 4, 4)))
        == len(as_batch(("a", "b")))
    )
