"""Shapes at about as many pixels as a square."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coeff_diffusion.images.shapes import RATIOS, bucket_sizes, nearest_size, size_of


def test_the_sizes_of_xl_are_among_the_buckets() -> None:
    sizes = bucket_sizes(1024, 32)
    assert sizes[0] == (1024, 1024)
    assert {(1152, 896), (896, 1152), (1216, 832), (1344, 768), (1536, 640), (640, 1536)} <= set(sizes)


@given(resolution=st.sampled_from([16, 128, 512, 768, 1024]), multiple=st.sampled_from([4, 8, 32, 64]))
def test_buckets_hold_no_more_than_the_square(resolution: int, multiple: int) -> None:
    if resolution % multiple:
        return
    sizes = bucket_sizes(resolution, multiple)
    assert (resolution, resolution) in sizes
    assert all(width * height <= resolution**2 for width, height in sizes)
    assert all(side % multiple == 0 and side > 0 for size in sizes for side in size)
    assert {size[::-1] for size in sizes} == set(sizes)
    assert all(max(size) <= 4 * min(size) for size in sizes)


def test_pictures_take_the_shape_nearest_to_theirs() -> None:
    sizes = bucket_sizes(1024, 32)
    assert nearest_size((4000, 4000), sizes) == (1024, 1024)
    assert nearest_size((4000, 3000), sizes) == (1152, 896)
    assert nearest_size((3000, 4000), sizes) == (896, 1152)
    assert nearest_size((9000, 1000), sizes) == (2048, 512)
    assert nearest_size((10, 10), [(16, 16), (8, 8)]) == (16, 16)


def test_shapes_by_name_are_native_sizes() -> None:
    xl = {ratio: size_of(ratio, (1024, 1024), 8) for ratio in RATIOS}
    assert xl == {
        "1:1": (1024, 1024), "4:3": (1152, 896), "3:4": (896, 1152), "3:2": (1216, 832), "2:3": (832, 1216),
        "16:9": (1344, 768), "9:16": (768, 1344),
    }  # fmt: skip
    assert size_of("4 : 1", (1024, 1024), 8) == (2048, 512)
    assert size_of("16:9", (128, 128), 8) == (168, 96)
    for wrong in ("", "1", "1:2:3", "a:b", "0:1", "1:0", "-1:1", "9:1", "1:5", "²:1"):
        with pytest.raises(ValueError, match="the shape is"):
            size_of(wrong, (1024, 1024), 8)
