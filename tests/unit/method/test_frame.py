# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""SAM's square frame: sizes, padding and coordinates, on images that are not square."""

import pytest
import torch

from anomalib_clipsam.method.frame import (
    frame_to_map,
    inside_frame,
    map_to_frame,
    pixels_to_points,
    resize_image,
    scaled_size,
)

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("size", "longer_side", "expected"),
    [
        ((300, 200), 150, (150, 100)),
        ((200, 300), 150, (100, 150)),
        ((50, 100), 300, (150, 300)),
        ((7, 5), 10, (10, 7)),  # 50 / 7 = 7.14
        ((5, 9), 10, (6, 10)),  # 50 / 9 = 5.56
        ((64, 64), 31, (31, 31)),
    ],
)
def test_size_is_scaled_to_the_longer_side(size: tuple[int, int], longer_side: int, expected: tuple[int, int]) -> None:
    assert scaled_size(size, longer_side) == expected


def test_no_side_is_scaled_to_nothing() -> None:
    assert scaled_size((1, 1000), 100) == (1, 100)
    assert scaled_size((1000, 1), 100) == (100, 1)


def test_image_of_the_right_size_is_left_as_it_is() -> None:
    image = torch.rand(2, 3, 4, 6)
    assert resize_image(image, 6) is image


def test_resized_image_keeps_columns_apart_and_stays_in_range() -> None:
    """Black left of white: bicubic weights overshoot beside the edge, and the range cuts that off."""
    image = torch.zeros(1, 3, 4, 8)
    image[..., 4:] = 1
    resized = resize_image(image, 16)
    assert resized.shape == (1, 3, 8, 16)
    # Twice the size: taps at 0.25 and 0.75 of a pixel, Keys' kernel with a = -0.5, as torch's antialiased one.
    edge = torch.tensor([0.0, 0.0, 0.0, 0.203125, 0.796875, 1.0, 1.0, 1.0])
    torch.testing.assert_close(resized[0, 0, 0, 4:12], edge, atol=1e-5, rtol=0)
    assert resized.amin() == 0
    assert resized.amax() == 1


def test_shrunk_image_is_antialiased() -> None:
    """One column of three is white: a third. Without antialiasing, the black column in the middle alone would count."""
    image = torch.zeros(1, 3, 6, 24)
    image[..., ::3] = 1
    inner = resize_image(image, 8)[..., 2:-2]  # where the kernel, 12 columns wide, does not meet the border
    torch.testing.assert_close(inner, torch.full((1, 3, 2, 4), 1 / 3), atol=1e-5, rtol=0)


def test_map_loses_the_padding_of_a_wide_image() -> None:
    """A 2 x 4 map: the frame's lower half is padding."""
    frame = torch.arange(16.0).view(1, 4, 4)
    assert torch.equal(frame_to_map(frame, (2, 4)), frame[:, :2])


def test_map_loses_the_padding_of_a_tall_image() -> None:
    """A 4 x 2 map: the frame's right half is padding."""
    frame = torch.arange(16.0).view(1, 4, 4)
    assert torch.equal(frame_to_map(frame, (4, 2)), frame[:, :, :2])


def test_frame_is_upsampled_bilinearly_before_it_is_cut() -> None:
    """2 x 2 to 4 x 4: places -0.25 (cut to 0), 0.25, 0.75, 1.25 (cut to 1) in either direction."""
    frame = torch.tensor([[[0.0, 4.0], [8.0, 12.0]]])
    expected = torch.tensor([[[0.0, 1.0, 3.0, 4.0], [2.0, 3.0, 5.0, 6.0], [6.0, 7.0, 9.0, 10.0]]])
    torch.testing.assert_close(frame_to_map(frame, (3, 4)), expected)


def test_map_is_averaged_over_cells_and_padded_with_zeros() -> None:
    wide = torch.tensor([[[1.0, 3.0, 5.0, 7.0], [1.0, 3.0, 5.0, 7.0]]])
    assert torch.equal(map_to_frame(wide, (2, 2)), torch.tensor([[[2.0, 6.0], [0.0, 0.0]]]))
    tall = wide.transpose(1, 2)
    assert torch.equal(map_to_frame(tall, (2, 2)), torch.tensor([[[2.0, 0.0], [6.0, 0.0]]]))


def test_cell_half_in_the_padding_counts_the_padding_as_zero() -> None:
    assert torch.equal(map_to_frame(torch.ones(1, 1, 4), (2, 2)), torch.tensor([[[0.5, 0.5], [0.0, 0.0]]]))


def test_map_and_frame_undo_each_other_at_one_scale() -> None:
    anomaly_map = torch.rand(2, 3, 5)
    assert torch.equal(frame_to_map(map_to_frame(anomaly_map, (5, 5)), (3, 5)), anomaly_map)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((50, 100), [[1, 1, 1, 1], [1, 1, 1, 1], [0, 0, 0, 0], [0, 0, 0, 0]]),
        ((100, 50), [[1, 1, 0, 0]] * 4),
        ((51, 100), [[1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 1, 1], [0, 0, 0, 0]]),  # a cell that shows a line of it
        ((7, 7), [[1, 1, 1, 1]] * 4),
    ],
)
def test_cells_that_show_the_image(size: tuple[int, int], expected: list[list[int]]) -> None:
    inside = inside_frame((4, 4), size, CPU)
    assert inside.dtype == torch.bool
    assert inside.int().tolist() == expected


def test_pixels_become_points_centre_to_centre() -> None:
    """A 2 x 4 map on a frame of 16: each pixel is 4 wide, and pixel 0 has its centre at 1.5."""
    index = torch.tensor([[0, 3, 4], [6, 7, -1]])
    expected = torch.tensor([[[1.5, 1.5], [13.5, 1.5], [1.5, 5.5]], [[9.5, 5.5], [13.5, 5.5], [0.0, 0.0]]])
    assert torch.equal(pixels_to_points(index, (2, 4), 16), expected)


def test_pixels_of_a_tall_map_are_scaled_by_its_height() -> None:
    """A 4 x 2 map on a frame of 16: index 5 is row 2, column 1."""
    assert torch.equal(pixels_to_points(torch.tensor([[5]]), (4, 2), 16), torch.tensor([[[5.5, 9.5]]]))
