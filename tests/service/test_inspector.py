from dataclasses import replace

import pytest
import torch
from PIL import ImageChops

pytest.importorskip("matplotlib")

from coeff_diffusion import Coefficients, CoefficientsError, CoefficientsInfo
from coeff_diffusion.inference.request import DrawCancelled, DrawProgress, DrawRequest, StudioError
from coeff_diffusion.service import StudioService
from coeff_diffusion.subject.heads import without_head

REQUEST = DrawRequest("a sks dog on grass", subjects={"dog": 1.0}, seed=1, steps=2)


def test_charts_show_the_subject(service: StudioService) -> None:
    charts, others = service.inspector.charts("dog"), service.inspector.charts("other-dog")
    for chart, other in ((charts.coefficients, others.coefficients), (charts.norms, others.norms)):
        assert ImageChops.difference(chart, other).getbbox() is not None
        assert chart.getpixel((0, 0)) == (255, 255, 255)  # a background of its own, for light and dark pages


def test_a_word_is_looked_at_in_the_very_picture_that_is_drawn(service: StudioService) -> None:
    steps: list[DrawProgress] = []
    view = service.inspector.look(REQUEST, "sks dog", steps.append)
    drawn = service.drawings.draw(REQUEST, compare=False).pictures[0]
    assert view.picture.image.tobytes() == drawn.image.tobytes()
    assert view.picture.parameters == drawn.parameters
    assert (len(steps), view.notes) == (2, [])
    grass = service.inspector.look(REQUEST, "grass")
    assert ImageChops.difference(view.chart, grass.chart).getbbox() is not None
    assert service.inspector.look(DrawRequest("a dog", subjects={"dog": 1.0}, steps=1), "dog").notes


def test_a_picture_is_drawn_again_without_one_head(service: StudioService) -> None:
    inspector, steps = service.inspector, []
    layer = inspector.heads("dog")[0]
    whole = Coefficients.load(service.library.path("dog"))
    assert (layer.title, len(layer.changes)) == ("down 0 · self", len(whole[layer.path]))
    assert layer.changes[3] == pytest.approx(float(whole[layer.path][3].norm()))
    view = inspector.without_head(REQUEST, layer.path, 3, steps.append)
    assert view.whole.image.tobytes() == service.drawings.draw(REQUEST, compare=False).pictures[0].image.tobytes()
    # The other picture is what a file without that row draws, from the same noise, and says what it is.
    rest = service.library.folder / "rest.safetensors"
    without_head(whole, layer.path, 3).save(rest)
    drawn = service.drawings.draw(replace(REQUEST, subjects={"rest": 1.0}), compare=False).pictures[0]
    assert view.without.image.tobytes() == drawn.image.tobytes() != view.whole.image.tobytes()
    assert f"Head switched off: {layer.path}:4" in view.without.parameters.replace('"', "")
    assert view.pixels > 0
    assert [(step.step, step.total) for step in steps] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    unseeded = inspector.without_head(replace(REQUEST, seed=None), layer.path, 3)
    assert unseeded.whole.seed == unseeded.without.seed


def test_a_head_that_is_not_there_or_learned_nothing_is_said(service: StudioService) -> None:
    off, path = service.inspector.without_head, service.inspector.heads("dog")[0].path
    with pytest.raises(StudioError, match="choose a subject first"):
        off(DrawRequest("a dog"), path, 0)
    idle = without_head(Coefficients.load(service.library.path("dog")), path, 1)
    idle.save(service.library.folder / "idle.safetensors")
    with pytest.raises(StudioError, match="nothing was learned for head 2 of down 0 · self"):
        off(replace(REQUEST, subjects={"idle": 1.0}), path, 1)
    token = Coefficients({}, {"text_encoder": torch.ones(1, 32)}, CoefficientsInfo(trigger="sks pot"))
    token.save(service.library.folder / "pot.safetensors")
    with pytest.raises(StudioError, match="'pot' is a learned word alone: it has no head"):
        off(replace(REQUEST, subjects={"pot": 1.0}), path, 0)
    assert service.inspector.heads("pot") == []


def test_what_cannot_be_looked_at_is_said(service: StudioService) -> None:
    look = service.inspector.look
    with pytest.raises(StudioError, match="'cat' is not in the prompt; its words are: a, sks dog, on, grass"):
        look(REQUEST, "cat")
    with pytest.raises(StudioError, match="choose a subject first"):
        look(DrawRequest("a dog"), "dog")
    with pytest.raises(StudioError, match="batch_size is 2, expected 1"):
        look(DrawRequest("a sks dog", subjects={"dog": 1.0}, batch_size=2), "sks dog")
    with pytest.raises(StudioError, match="steps is 0"):
        look(DrawRequest("a sks dog", subjects={"dog": 1.0}, steps=0), "sks dog")
    with pytest.raises(CoefficientsError, match="no subject 'cat' in .*; there is 'dog', 'other-dog'"):
        look(DrawRequest("a dog", subjects={"cat": 1.0}), "dog")
    with pytest.raises(DrawCancelled):
        look(REQUEST, "grass", should_stop=lambda: True)


def test_subjects_that_have_nothing_to_show_are_refused(service: StudioService) -> None:
    folder, path = service.library.folder, "mid_block.attentions.0.transformer_blocks.0.attn1"
    Coefficients({path: torch.ones(3, 3)}, info=CoefficientsInfo(trigger="sks cat")).save(folder / "cat.safetensors")
    for call in (
        lambda: service.inspector.charts("cat"),
        lambda: service.inspector.look(DrawRequest("a sks cat", subjects={"cat": 1.0}), "sks cat"),
    ):
        with pytest.raises(CoefficientsError, match=f"{path} has 3 heads, in this base 8"):
            call()
    token = Coefficients({}, {"text_encoder": torch.ones(1, 32)}, CoefficientsInfo(trigger="sks pot"))
    token.save(folder / "pot.safetensors")
    with pytest.raises(StudioError, match="'pot' is a learned word alone"):
        service.inspector.charts("pot")
    with pytest.raises(CoefficientsError, match="no subject 'bird' in"):
        service.inspector.charts("bird")


def test_a_prompt_is_suggested_that_calls_the_subject_up(service: StudioService) -> None:
    suggest, info = service.inspector.suggestion, CoefficientsInfo(trigger="sks cat", instance_prompt="a red sks cat")
    assert suggest("dog") == ("sks dog", "sks dog")
    assert suggest("dog", "the Sks dog on snow") == ("the Sks dog on snow", "sks dog")
    make = service.library.folder / "cat.safetensors"
    Coefficients.load(service.library.path("dog")).replace(info=info).save(make)
    assert suggest("cat", "a sks dog") == ("a red sks cat", "sks cat")
