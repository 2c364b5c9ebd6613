"""The subjects that ship with the embedded base: they fit it, are small, and draw again what their cards show."""

from pathlib import Path

import pytest

from coeff_diffusion import load_base
from coeff_diffusion.base import ready_cards
from coeff_diffusion.images.photo import read_image
from coeff_diffusion.inference.studio import Studio
from coeff_diffusion.service import StudioService
from coeff_diffusion.sources.image_card import extract
from coeff_diffusion.sources.library import Library
from coeff_diffusion.subject.info import not_learned

NAMES = ["cat", "lady_beetle", "penguin"]
MOST = 64 * 1024  # bytes of a card: every installation has them


@pytest.fixture(scope="module")
def service(tmp_path_factory) -> StudioService:
    folder = tmp_path_factory.mktemp("page")
    return StudioService(Studio(load_base()), Library(folder / "subjects"), folder / "pictures")


def test_cards_are_small_and_their_subjects_are_learned(service) -> None:
    assert [card.stem for card in ready_cards()] == NAMES == [card.stem for card in service.ready_cards]
    for card in ready_cards():
        (subject,) = extract(card)
        assert card.stat().st_size <= MOST
        assert subject.info.license == "MIT"
        assert subject.info.base_model == "embedded"
        assert subject.info.strangeness is not None
        assert not not_learned(subject.info.strangeness)


def test_cards_join_the_library_once_and_are_drawn_again(service) -> None:
    for number, card in enumerate(service.ready_cards, start=1):
        for _ in range(2):
            settings = service.drawings.settings_of(card)
        assert len(service.library.find()) == number
        assert len(settings.subjects) == 1
        assert settings.notes == []  # nothing is different from how it was drawn
    picture = service.drawings.draw(settings.request).pictures[0].image
    # Another processor may round otherwise; the picture is the same to the eye.
    drawn, shown = picture.convert("L").resize((16, 16)), read_image(card).convert("L").resize((16, 16))
    assert max(abs(a - b) for a, b in zip(drawn.tobytes(), shown.tobytes(), strict=True)) <= 16


def test_other_bases_have_none(tiny_pipe, tmp_path: Path) -> None:
    assert StudioService(Studio(tiny_pipe), Library(tmp_path), tmp_path / "pictures").ready_cards == []
