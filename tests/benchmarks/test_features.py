"""ImageNet features of pictures."""

from pathlib import Path

import pytest
import torch
from features import FeatureExtractor
from PIL import Image

EXAMPLES = Path(__file__).parents[2] / "examples" / "subjects"


@pytest.fixture(scope="module")
def extract() -> FeatureExtractor:
    return FeatureExtractor()


def test_one_character_looks_like_itself_on_other_backgrounds(extract: FeatureExtractor) -> None:
    names = ("dog", "penguin", "lady_beetle")
    pictures = [[Image.open(path) for path in sorted((EXAMPLES / name).glob("*.png"))] for name in names]
    features = [extract(group) for group in pictures]
    assert features[0].shape == (5, 1280)
    torch.testing.assert_close(features[0].norm(dim=1), torch.ones(5))
    for i, one in enumerate(features):
        among = (one @ one.T)[~torch.eye(5, dtype=torch.bool)].mean()
        assert all(among > (one @ other.T).mean() + 0.1 for j, other in enumerate(features) if j != i)


def test_tensors_and_pictures_give_the_same(extract: FeatureExtractor) -> None:
    pixels = torch.randint(0, 256, (2, 3, 96, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    pictures = [Image.fromarray(one.permute(1, 2, 0).numpy()) for one in pixels]
    torch.testing.assert_close(extract(pixels / 127.5 - 1), extract(pictures), atol=1e-4, rtol=1e-4)
