from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from subject_maker import make_subject

from coeff_diffusion import Coefficients, CoefficientsError, CoefficientsInfo
from coeff_diffusion.images.files import save_picture
from coeff_diffusion.images.generation_info import Parameters, PictureError, format_parameters, parse_parameters
from coeff_diffusion.inference.replay import MAX_BATCH, Base, Part, Replay
from coeff_diffusion.inference.request import DrawRequest, StudioError
from coeff_diffusion.inference.studio import Studio
from coeff_diffusion.sources.image_card import chunks
from coeff_diffusion.subject.layer_strengths import LayerStrengths


def subject(name: str, value: float, **info: str) -> Coefficients:
    return Coefficients({"a.b": torch.full((2, 2), value)}, info=CoefficientsInfo(name=name, **info))


DOG, CAT, BIRD = subject("dog", 0.1), subject("cat", 0.2), subject("bird", 0.3)
DRAWN = Parameters(
    "a dog and a cat",
    steps=3,
    guidance_scale=7.5,
    seed=7,
    model="embedded",
    subjects={"dog": 0.5, "cat": -1.0},
    hashes={"dog": DOG.sha256[:12], "cat": CAT.sha256[:12]},
)
OLD = replace(DRAWN, hashes={})


def replay(parameters: Parameters = DRAWN, *carried: Coefficients) -> Replay:
    return Replay(Path("card.png"), parameters, carried)


def given(one: Coefficients, strength: float | None = None) -> Part:
    return Part(one, strength=strength, source=f"{one.info.name}.safetensors")


def found(replay: Replay, *parts: Part) -> tuple[list[tuple[str | None, Coefficients, float | None]], list[str]]:
    chosen, notes = replay.parts(parts)
    return [(part.name, part.subject, part.strength) for part in chosen], notes


# --- subjects ---------------------------------------------------------------------------------------------------------


def test_carried_subjects_have_their_names_and_strengths_in_the_order_of_the_picture() -> None:
    expected = [("dog", DOG, 0.5), ("cat", CAT, -1.0)]
    assert found(replay(DRAWN, CAT, DOG)) == (expected, [])
    renamed = replace(DRAWN, subjects={"x": 0.5, "": -1.0}, hashes={"x": DOG.sha256[:12], "": CAT.sha256[:12]})
    assert found(replay(renamed, CAT, DOG)) == ([("x", DOG, 0.5), ("", CAT, -1.0)], [])


def test_subjects_of_one_name_are_told_apart() -> None:
    other = subject("dog", 0.4)
    drawn = replace(
        DRAWN, subjects={"dog": 1.0, "dog-2": 0.5}, hashes={"dog": DOG.sha256[:12], "dog-2": other.sha256[:12]}
    )
    assert found(replay(drawn, other, DOG))[0] == [("dog", DOG, 1.0), ("dog-2", other, 0.5)]
    twin = subject("dog", 0.1, trigger="sks dog")  # the same tensors for other words
    drawn = replace(drawn, hashes={"dog": DOG.sha256[:12], "dog-2": DOG.sha256[:12]})
    assert found(replay(drawn, DOG, twin))[0] == [("dog", DOG, 1.0), ("dog-2", twin, 0.5)]
    assert found(replay(drawn, DOG))[0] == [("dog", DOG, 1.0), ("dog-2", DOG, 0.5)]


def test_what_is_not_carried_has_to_be_given_and_its_hash_has_to_agree() -> None:
    assert found(replay(), given(CAT), given(DOG)) == ([("dog", DOG, 0.5), ("cat", CAT, -1.0)], [])
    assert found(replay(DRAWN, DOG), given(CAT, 2.0)) == ([("dog", DOG, 0.5), ("cat", CAT, 2.0)], [])
    with pytest.raises(
        StudioError,
        match=rf"^card.png was drawn with 'dog' \({DOG.sha256[:12]}\), 'cat' \({CAT.sha256[:12]}\), which it does not "
        "carry; give the file with --subject$",
    ):
        replay().parts([])
    with pytest.raises(
        StudioError,
        match=rf"^card.png was drawn with 'cat' \({CAT.sha256[:12]}\), which it does not carry; but bird.safetensors "
        rf"is 'bird' \({BIRD.sha256[:12]}\)$",
    ):
        replay(DRAWN, DOG).parts([given(BIRD)])


def test_flags_win_over_what_is_carried() -> None:
    assert found(replay(DRAWN, DOG, CAT), given(CAT, 0.1)) == ([("dog", DOG, 0.5), ("cat", CAT, 0.1)], [])
    chosen, notes = found(replay(DRAWN, DOG, CAT), given(BIRD), given(DOG))
    assert chosen == [(None, BIRD, None), ("dog", DOG, 0.5)]
    (note,) = notes
    assert note.startswith(f"bird.safetensors is 'bird' ({BIRD.sha256[:12]}); card.png was drawn with")
    assert f"'cat' ({CAT.sha256[:12]})" in note
    chosen, notes = found(replay(replace(DRAWN, subjects={}, hashes={})), given(BIRD))
    assert chosen == [(None, BIRD, None)]
    assert notes[0].endswith("card.png was drawn with no subject")


def test_a_carried_subject_that_took_no_part_takes_none() -> None:
    chosen, notes = found(replay(DRAWN, DOG, CAT, BIRD))
    assert [name for name, _, _ in chosen] == ["dog", "cat"]
    assert notes == [f"card.png also carries 'bird' ({BIRD.sha256[:12]}), which took no part in it"]


def test_older_pictures_without_hashes_go_by_the_name() -> None:
    chosen, notes = found(replay(OLD), given(CAT), given(DOG))
    assert chosen == [("dog", DOG, 0.5), ("cat", CAT, -1.0)]
    assert notes == [
        f"card.png does not record the hash of '{name}'; it is taken that {name}.safetensors is '{name}' ({digits})"
        for name, digits in DRAWN.hashes.items()
    ]
    assert found(replay(OLD, DOG, CAT))[0] == chosen
    with pytest.raises(StudioError, match=r"drawn with 'cat' \(its hash is not recorded\)"):
        replay(OLD).parts([given(DOG)])


# --- settings and base ------------------------------------------------------------------------------------------------


def test_a_request_comes_back_from_its_text(tiny_pipe: StableDiffusionPipeline) -> None:
    studio = Studio(tiny_pipe)
    studio.load(make_subject(tiny_pipe.unet, tiny_pipe.text_encoder, "dog", "sks dog", "dog"))
    asked = DrawRequest(
        "a sks dog,\nNegative prompt: really",
        negative_prompt="a: b",
        subjects={"dog": 1 / 3},
        seed=2**32 - 3,
        steps=2,
        guidance_scale=1.1 + 2.2,
        guidance_rescale=1 / 7,
        scheduler="Euler a",
        width=24,
        height=16,
        batch_size=2,
        gate="always",
        layers=LayerStrengths(cross_attention=1 / 3, down=-2.0, mid=0.0),
        begin=1 / 7,
        end=2 / 3,
    )
    for place, picture in enumerate(studio.draw(asked)):
        text = parse_parameters(picture.parameters)
        request, position = replay(text).request()
        assert position == place
        assert replace(request, subjects=text.subjects) == asked
        assert list(picture.subjects) == ["dog"]


def test_what_is_open_in_a_request_is_settled_in_the_text(tiny_pipe: StableDiffusionPipeline) -> None:
    (picture,) = Studio(tiny_pipe).draw(DrawRequest("a dog", steps=1))
    request, position = replay(parse_parameters(picture.parameters)).request()
    assert position is None
    assert request == replace(picture.request, scheduler="DDIM")
    # The guidance of a base with zero terminal SNR is rescaled unless the request says 0, and then so does the text.
    assert request.guidance_rescale == 0.0


def test_text_of_other_tools_leaves_the_rest_to_the_defaults() -> None:
    request, position = replay(parse_parameters("a cat\nSteps: 28, Seed: 12, Sampler: Euler a, CFG scale: 7")).request()
    assert (request.steps, request.seed, request.guidance_scale, position) == (28, 12, 7.0, None)
    assert (request.width, request.height, request.batch_size) == (None, None, 1)


@pytest.mark.parametrize(("size", "place"), [(2, 2), (2, -1), (10**9, 1), (MAX_BATCH + 1, 0), (9, 8), (-1, 0)])
def test_a_batch_that_cannot_be(size: int, place: int) -> None:
    with pytest.raises(StudioError, match=f"picture {place} of a batch of {size} with seed 7"):
        replay(replace(DRAWN, batch_size=size, batch_position=place)).request()


def test_another_base_is_noticed() -> None:
    drawn = replay(replace(DRAWN, base_hash="0123456789ab"))
    assert drawn.other_base(Base("embedded")) is None
    assert drawn.other_base(Base("embedded", "0123456789ab")) is None
    assert "drawn by the base 'embedded', this base is 'tiny'" in str(drawn.other_base(Base("tiny", "0123456789ab")))
    problem = str(drawn.other_base(Base("embedded", "ba9876543210")))
    assert "other weights" in problem
    assert "'0123456789ab'" in problem
    assert "'ba9876543210'" in problem
    assert drawn.other_base(Base("embedded", "ba9876543210", "float16")) is None  # rounded weights have another hash
    assert "does not say" in str(replay(replace(DRAWN, model=None)).other_base(Base("tiny")))


def test_bases_are_told_apart_by_their_weights(tiny_pipe: StableDiffusionPipeline) -> None:
    before = Base.of(tiny_pipe)
    assert before.model == "tiny"
    assert before.precision is None
    for weight in (tiny_pipe.unet.conv_in.weight, tiny_pipe.text_encoder.get_input_embeddings().weight,
                   tiny_pipe.vae.decoder.conv_out.bias):  # fmt: skip
        kept = weight.detach().clone()
        weight.data += 0.1
        assert Base.of(tiny_pipe).base_hash != before.base_hash
        weight.data = kept
    assert Base.of(tiny_pipe) == before
    Studio(tiny_pipe).load(make_subject(tiny_pipe.unet, tiny_pipe.text_encoder, "dog", "sks dog", "dog"))
    assert Base.of(tiny_pipe) == before  # what is loaded is no part of it
    assert Base.of(tiny_pipe.to(torch.bfloat16)).precision == "bfloat16"


def test_learned_words_take_part_without_being_asked_for(tiny_pipe: StableDiffusionPipeline) -> None:
    studio = Studio(tiny_pipe)
    for word in ("dog", "cat", "pot"):
        studio.load(make_subject(tiny_pipe.unet, tiny_pipe.text_encoder, word, f"sks {word}", word))
    request = DrawRequest("a sks dog", negative_prompt="a SKS  cat", steps=1, seed=1)
    found = parse_parameters(studio.draw(request)[0].parameters)
    assert found.subjects == {"dog": 0.0, "cat": 0.0}
    assert found.hashes == {name: studio.subjects[name].sha256[:12] for name in ("dog", "cat")}
    found = parse_parameters(studio.draw(replace(request, subjects={"pot": 1.0, "dog": 0.5}))[0].parameters)
    assert list(found.subjects.items()) == [("dog", 0.5), ("cat", 0.0), ("pot", 1.0)]  # in the order they are blended


def test_reading(tmp_path: Path) -> None:
    image = Image.new("RGB", (8, 8))
    path = save_picture(image, tmp_path / "a.png", format_parameters(DRAWN), chunks([DOG]))
    assert Replay.read(path) == Replay(path, DRAWN, [DOG])
    with pytest.raises(PictureError, match="no drawing parameters"):
        Replay.read(save_picture(image, tmp_path / "b.png", None, chunks([DOG])))
    (tmp_path / "c.png").write_bytes(path.read_bytes().replace(b"coEf", b"coEg"))
    assert Replay.read(tmp_path / "c.png").carried == []
    (tmp_path / "c.png").write_bytes(path.read_bytes().replace(b'"format_version', b'"format-version'))
    with pytest.raises(CoefficientsError, match="checksum"):
        Replay.read(tmp_path / "c.png")
