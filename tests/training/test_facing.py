"""Pictures that face the other way: told by the embedded base, by features made for it, and mirrored in training."""

from pathlib import Path

import pytest
import torch
from PIL import Image, ImageOps

from coeff_diffusion import load_base
from coeff_diffusion.inference.studio import Studio
from coeff_diffusion.training.config import ConfigError, TrainConfig
from coeff_diffusion.training.facing import disagreeing, turned_away
from coeff_diffusion.training.model import Learner
from coeff_diffusion.training.preparation import TrainingData, prepare_data

SUBJECTS = Path(__file__).parents[2] / "examples" / "subjects"
CAT_FACES_RIGHT = [False, True, False, True, False]


@pytest.fixture(scope="module")
def embedded():
    return load_base()


def prepared(pipe, folder, **changes) -> tuple[TrainingData, list[str]]:
    said: list[str] = []
    settings = {"instance_data_dir": str(folder), "class_word": "cat", "resolution": 128, "center_crop": True}
    config = TrainConfig(**{**settings, **changes}).resolve()
    data = prepare_data(config, Learner(pipe, config, pipe.device), Studio(pipe), said.append, show_progress=False)
    return data, [line for line in said if "mirrored" in line]


def pictures(faces_left: list[bool], asymmetric: bool = True) -> tuple[torch.Tensor, torch.Tensor]:
    """Features `[P, 5, 16, 16]` of a thing with a head on one side, on a ground, and those of its mirror images."""
    found = torch.zeros(len(faces_left), 5, 16, 16)
    found[:, 0] = 1  # ground
    found[:, :, 6:10, 4:12] = torch.tensor([0.0, 1, 0, 0, 0])[:, None, None]  # body
    found[:, :, 6:10, 3:5] = torch.tensor([0.0, 0, 1, 0, 0])[:, None, None]  # head
    found[:, :, 6:10, 11:13] = torch.tensor([0.0, 0, 0 if asymmetric else 1, asymmetric, 0])[:, None, None]  # tail
    found += 0.1 * torch.randn(found.shape, generator=torch.Generator().manual_seed(0))
    found = torch.stack([one if left else one.flip(-1) for one, left in zip(found, faces_left, strict=True)])
    found = torch.stack([one.roll((-1) ** i * (i % 3), -1) for i, one in enumerate(found)])  # not all in the middle
    return found, found.flip(-1)


@pytest.mark.parametrize(
    ("faces_left", "expected"),
    [
        ([True, True, False, True, False], [False, False, True, False, True]),
        ([False, True, False, False, True, False], [False, True, False, False, True, False]),
        ([True, False], [False, True]),  # of two halves the one with the first stays
        ([False, True], [False, True]),
        ([True] * 4, [False] * 4),
        ([True], [False]),
    ],
)
def test_the_minority_is_told(faces_left, expected) -> None:
    assert disagreeing(*pictures(faces_left)) == expected


def test_what_faces_nowhere_stays_as_it_is() -> None:
    plain, mirrored = pictures([True] * 5, asymmetric=False)
    assert not any(disagreeing((plain + mirrored) / 2, (plain + mirrored) / 2))


def test_cats_are_mirrored_to_face_one_way_on_the_embedded_base(embedded, tmp_path) -> None:
    facing, said = prepared(embedded, SUBJECTS / "cat")
    as_is, nothing = prepared(embedded, SUBJECTS / "cat", facing="as_is")
    assert [line.partition(", so that")[0] for line in said] == ["mirrored 2 files (01.png, 03.png)"]
    assert nothing == []
    for number in range(5):
        name = f"{number:02d}.png"
        picture = Image.open(SUBJECTS / "cat" / name)
        (ImageOps.mirror(picture) if CAT_FACES_RIGHT[number] else picture).save(tmp_path / name)
    by_hand, nothing = prepared(embedded, tmp_path, facing="one_way")
    assert nothing == []  # all face one way now
    assert torch.equal(facing.data.instance.groups[0].mean, by_hand.data.instance.groups[0].mean)
    same = (facing.data.instance.groups[0].mean == as_is.data.instance.groups[0].mean).all((1, 2, 3))
    assert (~same).tolist() == CAT_FACES_RIGHT
    assert facing.fingerprint != as_is.fingerprint  # a run that saw other pictures is not gone on from


def test_dogs_that_face_one_way_already_stay(embedded) -> None:
    assert prepared(embedded, SUBJECTS / "dog", class_word="dog")[1] == []


def test_pictures_to_measure_on_face_as_those_to_train_on(embedded) -> None:
    _, said = prepared(embedded, SUBJECTS / "cat", validation_split=2)
    assert said[0].startswith("mirrored 2 files (01.png, 03.png)")


def test_a_mask_is_mirrored_with_its_picture(embedded, tmp_path) -> None:
    mask = Image.new("L", (128, 128))
    mask.paste(255, (0, 0, 64, 128))
    for number in range(5):
        Image.open(SUBJECTS / "cat" / f"{number:02d}.png").save(tmp_path / f"{number}.png")
        mask.save(tmp_path / f"{number}-masklabel.png")
    weights = prepared(embedded, tmp_path)[0].data.instance.groups[0].weights
    learned_right = [bool(one[0, 8, 12] > one[0, 8, 3]) for one in weights]
    assert learned_right == CAT_FACES_RIGHT


@pytest.mark.parametrize("change", [{"random_flip": True}, {"pretrained_model_name_or_path": "other"}])
def test_nobody_else_is_mirrored_unasked(tiny_pipe, embedded, change) -> None:
    pipe = embedded if "random_flip" in change else tiny_pipe
    assert prepared(pipe, SUBJECTS / "cat", **change)[1] == []


def test_other_bases_are_asked_where_it_is_wanted(tiny_pipe, tiny_xl_pipe) -> None:
    for pipe in (tiny_pipe, tiny_xl_pipe):
        latents = torch.randn(3, 4, 16, 16, generator=torch.Generator().manual_seed(1))
        assert len(turned_away(pipe, latents, latents.flip(-1), "a cat")) == 3


def test_facing_one_way_and_flipping_at_random_exclude_each_other() -> None:
    with pytest.raises(ConfigError, match="--facing one_way and --random_flip exclude each other"):
        TrainConfig(instance_data_dir="x", class_word="cat", facing="one_way", random_flip=True).resolve()
