"""Any picture becomes squares of what training looks at."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from coeff_diffusion.images.shapes import bucket_sizes, nearest_size
from coeff_diffusion.training.photos import View, choose_views, scale, view_tensor


def views(size: tuple[int, int], center: bool, flip: bool, count: int = 8, seed: int = 0) -> list[View]:
    return choose_views(size, (16, 16), center, flip, count, torch.Generator().manual_seed(seed))


def test_no_more_views_than_there_are() -> None:
    assert views((16, 16), center=False, flip=False) == [View(0, 0)]
    assert views((16, 16), center=False, flip=True) == [View(0, 0), View(0, 0, flip=True)]
    assert views((20, 16), center=True, flip=False) == [View(2, 0)]
    assert views((20, 16), center=True, flip=True) == [View(2, 0), View(2, 0, flip=True)]
    assert len(views((18, 16), center=False, flip=False, count=50)) == 3


def test_random_crops_are_seeded_and_reach_both_ends() -> None:
    assert views((40, 16), center=False, flip=True) == views((40, 16), center=False, flip=True)
    assert views((40, 16), center=False, flip=True) != views((40, 16), center=False, flip=True, seed=1)
    many = views((20, 16), center=False, flip=True, count=200)
    assert {view.left for view in many} == {0, 1, 2, 3, 4}
    assert {view.flip for view in many} == {False, True}
    assert len(set(many)) == len(many)


@given(width=st.integers(1, 90), height=st.integers(1, 90), resolution=st.sampled_from([8, 16, 24]))
def test_any_size_gives_a_square(width: int, height: int, resolution: int) -> None:
    image = scale(Image.new("RGB", (width, height)), (resolution, resolution))
    assert min(image.size) == resolution
    for view in choose_views(image.size, (resolution, resolution), False, True, 3, torch.Generator().manual_seed(0)):
        assert view_tensor(image, (resolution, resolution), view).shape == (3, resolution, resolution)


def test_pixels_of_a_view() -> None:
    image = Image.fromarray(np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3))
    square = view_tensor(image, (4, 4), View(1, 0))
    assert square.dtype == torch.float32
    expected = torch.tensor(np.asarray(image)[:, 1:5].copy()).permute(2, 0, 1) / 127.5 - 1
    assert torch.equal(square, expected)
    assert torch.equal(view_tensor(image, (4, 4), View(1, 0, flip=True)), expected.flip(-1))
    white = view_tensor(ImageOps.invert(Image.new("RGB", (4, 4))), (4, 4), View(0, 0))
    assert torch.equal(white, torch.ones(3, 4, 4))


def test_a_panorama_is_hardly_cropped() -> None:
    target = nearest_size((4000, 1600), bucket_sizes(1024, 32))
    image = scale(Image.new("RGB", (4000, 1600)), target)
    assert target == (1600, 640)
    assert image.size == target
