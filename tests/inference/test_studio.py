import re
import threading
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from PIL import Image
from subject_maker import make_subject

from coeff_diffusion import Coefficients, unload_coefficients
from coeff_diffusion.images.generation_info import parse_parameters
from coeff_diffusion.inference.request import DrawCancelled, DrawProgress, DrawRequest, StudioError
from coeff_diffusion.inference.samplers import SchedulerError, make_scheduler
from coeff_diffusion.inference.studio import Studio
from coeff_diffusion.subject.layer_strengths import LayerStrengths

NOWHERE = LayerStrengths(self_attention=0, cross_attention=0)
REQUEST = DrawRequest("a photo of sks dog on grass", seed=3, steps=3)
PLAIN = DrawRequest("a photo of the cat", seed=3, steps=3)


@pytest.fixture
def studio(tiny_pipe: StableDiffusionPipeline) -> Studio:
    return Studio(tiny_pipe)


@pytest.fixture
def dog(tiny_pipe: StableDiffusionPipeline) -> Coefficients:
    return make_subject(tiny_pipe.unet, tiny_pipe.text_encoder, "dog", "sks dog", "dog")


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image, dtype=np.int16)


def same(a: Image.Image, b: Image.Image) -> bool:
    return bool((pixels(a) == pixels(b)).all())


def stock(pipe: StableDiffusionPipeline, request: DrawRequest) -> list[Image.Image]:
    """What anyone gets from the pipeline itself."""
    pipe.set_progress_bar_config(disable=True)
    return pipe(
        [request.prompt] * request.batch_size,
        negative_prompt=[request.negative_prompt] * request.batch_size,
        num_inference_steps=request.steps,
        guidance_scale=7.5 if request.guidance_scale is None else request.guidance_scale,
        generator=[torch.Generator().manual_seed(request.seed + i) for i in range(request.batch_size)],
    ).images


def test_without_subjects_it_is_the_stock_pipeline(studio: Studio) -> None:
    expected = stock(studio.pipe, replace(PLAIN, batch_size=2))
    found = studio.draw(replace(PLAIN, batch_size=2))
    assert all(same(picture.image, image) for picture, image in zip(found, expected, strict=True))


def test_any_picture_of_a_batch_can_be_drawn_alone(studio: Studio, dog: Coefficients) -> None:
    studio.load(dog)
    batch = studio.draw(replace(REQUEST, batch_size=3, subjects={"dog": 1.0}, scheduler="Euler a"))
    assert [picture.seed for picture in batch] == [3, 4, 5]
    alone = studio.draw(batch[2].request)
    assert len(alone) == 1
    # Not bitwise: matrix products of another batch size round in another order.
    assert np.abs(pixels(alone[0].image) - pixels(batch[2].image)).max() <= 1
    assert not same(batch[0].image, batch[1].image)


def test_a_picture_knows_how_it_was_drawn(studio: Studio, dog: Coefficients) -> None:
    studio.load(dog)
    picture = studio.draw(replace(REQUEST, negative_prompt="red", subjects={"dog": 0.5}))[0]
    found = parse_parameters(picture.parameters)
    assert (found.prompt, found.negative_prompt) == (REQUEST.prompt, "red")
    assert (found.steps, found.seed, found.guidance_scale) == (3, 3, 7.5)
    assert (found.width, found.height) == picture.image.size == (16, 16)
    assert (found.scheduler, found.model, found.subjects) == ("DDIM", "tiny", {"dog": 0.5})


def test_a_subject_acts_when_asked_for_and_only_then(studio: Studio, dog: Coefficients) -> None:
    base = studio.draw(PLAIN)[0].image
    studio.load(dog)
    acting = replace(REQUEST, subjects={"dog": 1.0})
    assert not same(studio.draw(acting)[0].image, studio.draw(replace(acting, subjects={"dog": 0.3}))[0].image)
    assert same(studio.draw(PLAIN)[0].image, base)
    assert same(studio.draw(replace(PLAIN, subjects={"dog": 1.0}))[0].image, base)  # its trigger is not in the prompt
    assert same(stock(studio.pipe, PLAIN)[0], base)  # between drawings nothing acts
    studio.unload("dog")
    assert studio.subjects == {}


def test_gate_of_a_request_wins(studio: Studio, dog: Coefficients) -> None:
    studio.load(dog)
    base = studio.draw(PLAIN)[0].image
    assert not same(studio.draw(replace(PLAIN, subjects={"dog": 1.0}, gate="always"))[0].image, base)
    assert same(studio.draw(replace(PLAIN, subjects={"dog": 1.0}))[0].image, base)


def test_compare_draws_the_base_from_the_same_noise(studio: Studio, dog: Coefficients) -> None:
    expected = stock(studio.pipe, replace(REQUEST, prompt="a photo of dog on grass", batch_size=2))
    studio.load(dog)
    base, drawn = studio.compare(replace(REQUEST, prompt="a photo of  Sks  dog on grass", batch_size=2,
                                         subjects={"dog": 1.0}))  # fmt: skip
    assert all(same(picture.image, image) for picture, image in zip(base, expected, strict=True))
    assert base[0].request.prompt.split() == ["a", "photo", "of", "dog", "on", "grass"]
    assert [p.seed for p in base] == [p.seed for p in drawn] == [3, 4]
    assert not same(base[0].image, drawn[0].image)
    steps: list[DrawProgress] = []
    studio.compare(REQUEST, on_step=steps.append)
    assert [(progress.step, progress.total) for progress in steps] == [(i, 6) for i in range(1, 7)]
    assert steps[0].seconds_left > 0
    assert steps[-1].seconds_left == 0


def test_compare_without_a_class_word_wants_a_prompt(studio: Studio, dog: Coefficients) -> None:
    studio.load(dog.replace(info=replace(dog.info, class_word="")))
    request = replace(REQUEST, subjects={"dog": 1.0})
    with pytest.raises(StudioError, match="'dog' does not record its class word"):
        studio.compare(request)
    base, _ = studio.compare(request, base_prompt="a dog")
    assert base[0].request.prompt == "a dog"


def test_notes_say_when_a_subject_cannot_act(studio: Studio, dog: Coefficients) -> None:
    studio.load(dog)
    assert studio.notes(replace(REQUEST, subjects={"dog": 1.0})) == []
    assert studio.notes(PLAIN) == []
    (note,) = studio.notes(replace(PLAIN, subjects={"dog": 1.0}))
    assert note == "the prompt does not contain 'sks dog', so 'dog' does not act"
    assert studio.notes(replace(PLAIN, subjects={"dog": 1.0}, gate="always")) == []


def test_notes_say_what_is_not_read(studio: Studio, dog: Coefficients, caplog: pytest.LogCaptureFixture) -> None:
    studio.load(dog)
    long = replace(REQUEST, prompt=f"(red:1.2) {'red ' * 80}sks dog", negative_prompt="blue " * 80 + "BREAK, snow")
    first, prompt, negative, syntax = studio.notes(replace(long, subjects={"dog": 1.0}))
    assert first.startswith("the trigger 'sks dog' of 'dog' stands behind the tokens that the text encoder reads")
    assert "so the subject does not act" in first
    assert re.fullmatch(
        r"prompt: \d\d of \d\d tokens are cut off, the text encoder does not read 'red .* sks dog'", prompt
    )
    assert re.fullmatch(r"negative prompt: \d\d of .* does not read 'blue .* BREAK, snow'", negative)
    assert syntax == "read as plain text here, though not in other programs: '(red:1.2)', 'BREAK'"
    assert any("so its word is lost" in note for note in studio.notes(replace(long, gate="always")))
    unguided = studio.notes(replace(long, guidance_scale=1.0))
    assert not any(note.startswith("negative") for note in unguided)
    studio.draw(replace(long, subjects={"dog": 1.0}))  # neither warns nor lets others log what the notes say
    assert caplog.records == []


def test_a_drawing_leaves_the_pipeline_as_it_was(studio: Studio) -> None:
    pipe = studio.pipe
    scheduler = pipe.scheduler
    pipe.unet.train()
    pipe.unet.mid_block.eval()
    modes = {name: module.training for name, module in pipe.unet.named_modules()}
    state = torch.get_rng_state()
    studio.draw(replace(PLAIN, scheduler="Euler a"))
    assert pipe.scheduler is scheduler
    assert modes == {name: module.training for name, module in pipe.unet.named_modules()}
    assert torch.equal(state, torch.get_rng_state())


def test_progress_and_cancelling(studio: Studio, dog: Coefficients) -> None:
    studio.load(dog)
    steps: list[DrawProgress] = []
    studio.draw(REQUEST, steps.append)
    assert [(progress.step, progress.total) for progress in steps] == [(1, 3), (2, 3), (3, 3)]
    assert steps[0].latents.shape == (1, 4, 8, 8)
    assert steps[-1].seconds_left == 0
    seen: list[DrawProgress] = []
    with pytest.raises(DrawCancelled):
        studio.draw(replace(REQUEST, subjects={"dog": 1.0}), seen.append, should_stop=lambda: len(seen) == 2)
    assert len(seen) == 2
    assert same(studio.draw(PLAIN)[0].image, stock(studio.pipe, PLAIN)[0])


def test_random_seeds_are_recorded(studio: Studio) -> None:
    first, second = (studio.draw(replace(PLAIN, seed=None))[0] for _ in range(2))
    assert first.seed != second.seed
    assert same(studio.draw(first.request)[0].image, first.image)


@pytest.mark.parametrize("guidance_scale", [1.0, 7.5])
def test_subjects_act_in_a_part_of_denoising(studio: Studio, dog: Coefficients, guidance_scale: float) -> None:
    studio.load(dog)

    def steps(**changes: Any) -> list[torch.Tensor]:
        seen: list[DrawProgress] = []
        request = replace(REQUEST, steps=4, guidance_scale=guidance_scale, **changes)
        studio.draw(request, lambda progress: seen.append(progress))
        return [progress.latents.clone() for progress in seen]

    def alike(first: list[torch.Tensor], second: list[torch.Tensor]) -> list[bool]:
        return [torch.equal(one, other) for one, other in zip(first, second, strict=True)]

    on = {"subjects": {"dog": 1.0}}
    base, whole = steps(**on, layers=NOWHERE), steps(**on)  # the learned word is in both
    assert alike(base, whole) == [False] * 4
    late, early, middle = steps(**on, begin=0.5), steps(**on, end=0.5), steps(**on, begin=0.25, end=0.75)
    assert alike(late, base) == [True, True, False, False]
    assert alike(early, whole) == [True, True, False, False]
    assert alike(early, base) == [False] * 4
    assert alike(middle, base) == [True, False, False, False]
    # One step, then the base again: from the same latents on it goes the base's way.
    assert alike(steps(**on, begin=0.75), base) == [True, True, True, False]
    assert alike(steps(**on, begin=0.1, end=0.2), base) == [True] * 4
    (note,) = studio.notes(replace(REQUEST, steps=4, begin=0.1, end=0.2, **on))
    assert note == "none of the 4 steps lies between 0.1 and 0.2 of denoising, so no subject acts"
    assert studio.notes(replace(REQUEST, steps=4, begin=0.1, end=0.26, **on)) == []
    assert alike(steps(**on, layers=NOWHERE), base) == [True] * 4


@pytest.mark.parametrize(("scheduler", "base_calls"), [("Heun", 2), ("PLMS", 2), ("DPM++ 2M", 1)])
def test_samplers_that_take_more_calls_than_steps(
    studio: Studio, dog: Coefficients, scheduler: str, base_calls: int
) -> None:
    """Of three steps the first is the base's, whole."""
    studio.load(dog)
    request = replace(REQUEST, subjects={"dog": 1.0}, scheduler=scheduler)
    seen: dict[float, list[torch.Tensor]] = {0.0: [], 1 / 3: []}
    studio.draw(replace(request, layers=NOWHERE), lambda progress: seen[0.0].append(progress.latents.clone()))
    studio.draw(replace(request, begin=1 / 3), lambda progress: seen[1 / 3].append(progress.latents.clone()))
    alike = [torch.equal(one, other) for one, other in zip(*seen.values(), strict=True)]
    assert alike == [i < base_calls for i in range(len(alike))]


def test_layers_of_a_request(studio: Studio, dog: Coefficients) -> None:
    base = studio.draw(replace(PLAIN, prompt="a photo of dog"))[0].image
    studio.load(dog.replace(tokens={}), name="dog")
    request = replace(PLAIN, prompt="a photo of dog", gate="always", subjects={"dog": 1.0})
    drawn = studio.draw(request)[0].image
    weaker = studio.draw(replace(request, layers=LayerStrengths(cross_attention=0.5)))[0].image
    assert not same(weaker, drawn)
    assert not same(weaker, base)
    nothing = LayerStrengths(self_attention=0, cross_attention=0)
    assert same(studio.draw(replace(request, layers=nothing))[0].image, base)
    assert same(studio.draw(request)[0].image, drawn)


def test_samplers_tell_where_they_are_going(studio: Studio) -> None:
    for name in studio.schedulers:
        pipe, own = studio.pipe, studio.pipe.scheduler
        pipe.scheduler = make_scheduler(name, own)
        (expected,) = stock(pipe, PLAIN)
        pipe.scheduler = own
        steps: list[DrawProgress] = []
        (picture,) = studio.draw(replace(PLAIN, scheduler=name), steps.append)
        assert same(picture.image, expected)  # listening to a sampler changes nothing
        told = [progress.denoised for progress in steps]
        if name == "PLMS":
            assert told == [None] * len(steps)
            continue
        last = steps[-1]
        assert all(one is not None and one.shape == last.latents.shape for one in told)
        assert last.denoised is not None
        torch.testing.assert_close(last.denoised, last.latents, rtol=0, atol=0.1 if name != "DDPM" else 0.3)


# --- a batch of requests ----------------------------------------------------------------------------------------------


@pytest.fixture
def mixed(studio: Studio, dog: Coefficients, tiny_pipe: StableDiffusionPipeline) -> list[DrawRequest]:
    """Four pictures of one base: a dog, half a cat, the base, and a dog that is off."""
    studio.load(dog)
    studio.load(make_subject(tiny_pipe.unet, tiny_pipe.text_encoder, "cat", "zwx cat", "cat", seed=2))
    return [
        replace(REQUEST, subjects={"dog": 1.0}),
        replace(REQUEST, prompt="a zwx cat", negative_prompt="red", seed=8, subjects={"cat": 0.5}),
        replace(REQUEST, prompt="a beach", seed=9, subjects={"dog": 1.0}),
        replace(REQUEST, subjects={"dog": 0.0}),
    ]


@pytest.mark.parametrize(
    "changes",
    [{}, {"guidance_scale": 1.0}, {"scheduler": "Euler a"}, {"begin": 0.3, "layers": LayerStrengths(up=0.5)}],
)
def test_a_batch_of_requests_is_its_pictures_drawn_alone(
    studio: Studio, mixed: list[DrawRequest], changes: dict[str, Any]
) -> None:
    requests = [replace(request, **changes) for request in mixed]
    steps: list[DrawProgress] = []
    pictures = studio.draw_batch(requests, steps.append)
    assert [(progress.step, progress.latents.shape) for progress in steps] == [(i, (4, 4, 8, 8)) for i in (1, 2, 3)]
    for picture, request in zip(pictures, requests, strict=True):
        (alone,) = studio.draw(request)
        assert np.abs(pixels(alone.image) - pixels(picture.image)).max() <= 1
        # What it says is how to draw it alone.
        assert picture.parameters == alone.parameters
        assert (picture.request, picture.seed) == (alone.request, alone.seed)
        assert (list(picture.subjects), parse_parameters(picture.parameters).batch_size) == (list(alone.subjects), 1)
    # Which subjects act in the first two pictures does not change a bit of the other two.
    others = studio.draw_batch([replace(request, subjects={}) for request in requests])
    assert [same(one.image, other.image) for one, other in zip(pictures, others, strict=True)] == [
        False, False, True, True,
    ]  # fmt: skip


def test_requests_of_a_batch_have_seeds_of_their_own(studio: Studio) -> None:
    pictures = studio.draw_batch([replace(PLAIN, seed=None)] * 3)
    assert len({picture.seed for picture in pictures}) == 3
    assert studio.draw_batch([PLAIN, replace(PLAIN, width=16)])[1].seed == 3  # the size that is the base's anyway
    with pytest.raises(DrawCancelled):
        studio.draw_batch([PLAIN], should_stop=lambda: True)


def test_requests_that_make_no_batch_are_refused(studio: Studio) -> None:
    with pytest.raises(StudioError, match="nothing to draw; give at least one request"):
        studio.draw_batch([])
    for changes, message in [
        ({"guidance_scale": 3.0}, "guidance_scale is 7.5 and 3.0, expected the same for all pictures of a batch"),
        ({"steps": 4}, "steps is 3 and 4"),
        ({"scheduler": "Euler"}, "scheduler is None and 'Euler'"),
        ({"width": 24}, "width is 16 and 24"),
        ({"gate": "always"}, "gate is None and 'always'"),
        ({"end": 0.5}, "end is 1.0 and 0.5"),
        ({"layers": LayerStrengths(mid=0)}, "layers is LayerStrengths"),
        ({"batch_size": 2}, "batch_size is 2, expected 1 in a batch of requests"),
    ]:
        with pytest.raises(StudioError, match=message):
            studio.draw_batch([PLAIN, PLAIN, replace(PLAIN, **changes)])
    with pytest.raises(StudioError) as error:
        studio.draw_batch([replace(PLAIN, steps=0), replace(PLAIN, steps=0), replace(PLAIN, subjects={"cat": 1})])
    assert str(error.value) == (
        "picture 1: steps is 0, expected 1 to 998; picture 3: no subject 'cat' is loaded; loaded are none"
    )


# --- what cannot be drawn ---------------------------------------------------------------------------------------------


def test_everything_wrong_is_said_at_once(studio: Studio) -> None:
    with pytest.raises(StudioError) as error:
        studio.draw(
            DrawRequest("x", steps=0, width=12, guidance_scale=-1, batch_size=0, scheduler="Oiler", subjects={"cat": 1},
                        layers=LayerStrengths(down=float("nan")), begin=0.5, end=0.4)
        )  # fmt: skip
    for part in (
        "steps is 0, expected 1 to 998",
        "width is 12, expected a multiple of 8",
        "guidance_scale is -1, expected 0 to 100",
        "batch_size is 0, expected at least 1",
        "no subject 'cat' is loaded; loaded are none",
        "no scheduler 'Oiler'",
        "the factor on the strength in down layers is nan, expected a finite number",
        "begin is 0.5 and end is 0.4, expected begin before end",
    ):
        assert part in str(error.value)
    for wrong in (replace(PLAIN, seed=-1), replace(PLAIN, seed=2**32), replace(PLAIN, guidance_scale=float("nan"))):
        with pytest.raises(StudioError, match="expected 0 to"):
            studio.draw(wrong)
    for wrong in (replace(PLAIN, begin=-0.1), replace(PLAIN, end=1.1), replace(PLAIN, begin=float("nan"))):
        with pytest.raises(StudioError, match=r"(begin|end) is (-0.1|1.1|nan), expected 0 to 1"):
            studio.draw(wrong)
    with pytest.raises(StudioError, match="no subject 'cat' is loaded"):
        studio.unload("cat")


def test_strength_that_breaks_the_picture_is_an_error(studio: Studio, dog: Coefficients) -> None:
    studio.load(dog)
    with pytest.raises(StudioError, match="expected a finite number"):
        studio.draw(replace(REQUEST, subjects={"dog": float("inf")}))
    with pytest.raises(StudioError, match="broke up into infinities; lower the strength"):
        studio.draw(replace(REQUEST, subjects={"dog": 1e38}))
    assert same(studio.draw(PLAIN)[0].image, stock(studio.pipe, PLAIN)[0])


def test_size(studio: Studio) -> None:
    assert studio.size == (16, 16)
    assert studio.draw(replace(PLAIN, width=24))[0].image.size == (24, 16)


def test_zero_terminal_snr_rescales_guidance(studio: Studio) -> None:
    config = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    studio.pipe.scheduler = DDIMScheduler.from_config(studio.pipe.scheduler.config, **config)
    assert studio.schedulers == ["DDIM", "DDPM", "Euler", "Euler a", "DPM++ 2M", "DPM++ 2M SDE", "UniPC"]
    picture = studio.draw(PLAIN)[0]
    assert picture.request.guidance_rescale == 0.7
    assert parse_parameters(picture.parameters).guidance_rescale == 0.7
    assert studio.draw(replace(PLAIN, guidance_scale=1))[0].request.guidance_rescale == 0.0
    with pytest.raises((StudioError, SchedulerError), match="knows no zero terminal SNR"):
        studio.draw(replace(PLAIN, scheduler="Heun"))


def test_threads_wait_for_each_other(studio: Studio, dog: Coefficients) -> None:
    """Each caller gets its own picture, whatever the others ask for meanwhile."""
    studio.load(dog)
    requests = [replace(REQUEST, seed=i, steps=2, subjects={"dog": 1.0} if i % 2 else {}) for i in range(6)]
    expected = [studio.draw(request)[0].image for request in requests]
    found: dict[int, Image.Image] = {}

    def draw(i: int) -> None:
        found[i] = studio.draw(requests[i])[0].image

    threads = [threading.Thread(target=draw, args=(i,)) for i in range(len(requests))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(same(found[i], image) for i, image in enumerate(expected))


def test_a_subject_loaded_outside_is_seen(studio: Studio, dog: Coefficients) -> None:
    name = studio.load(dog, name="rex")
    assert name == "rex"
    assert studio.subjects["rex"].info.trigger == "sks dog"
    unload_coefficients(studio.pipe)
    assert studio.subjects == {}
