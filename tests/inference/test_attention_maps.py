from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor
from torch.nn.functional import linear

from coeff_diffusion import Coefficients, load_coefficients
from coeff_diffusion.inference.attention_maps import recording, word_positions
from coeff_diffusion.inference.request import DrawRequest, StudioError
from coeff_diffusion.inference.studio import Studio
from coeff_diffusion.method.attachment import CoeffConfig, select_layers
from coeff_diffusion.method.recombination import recombined_attention

PROMPT = "a sks dog on grass"
CROSS = CoeffConfig(layers="cross")
NewSubject = Callable[..., Coefficients]


@contextmanager
def heard(unet: UNet2DConditionModel) -> Iterator[dict[str, list[tuple[Tensor, Tensor]]]]:
    """The inputs of each cross-attention layer at each step: picture `[B, N, C]` and prompt `[B, M, C']`."""
    inputs: dict[str, list[tuple[Tensor, Tensor]]] = {}

    def listener(path: str) -> Callable[..., None]:
        def hear(attn: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            inputs.setdefault(path, []).append((args[0].clone(), kwargs["encoder_hidden_states"].clone()))

        return hear

    hooks = [
        attn.register_forward_pre_hook(listener(path), with_kwargs=True)
        for path, attn in select_layers(unet, CROSS).items()
    ]
    yield inputs
    for hook in hooks:
        hook.remove()


def reference(attn: Any, hidden: Tensor, context: Tensor, coeff: Tensor, positions: list[int]) -> Tensor:
    """One picture's maps by the reference, `[N]`: attention whose values are the unit vectors gives its own maps."""
    query, key = linear(hidden, attn.to_q.weight), linear(context, attn.to_k.weight)
    query, key = (x.reshape(len(x), attn.heads, -1).movedim(1, 0)[None] for x in (query, key))  # [1, H, N or M, D]
    value = torch.eye(key.shape[2]).expand(1, attn.heads, -1, -1)
    return recombined_attention(query, key, value, coeff)[0, :, :, positions].sum(-1).mean(0)


@pytest.mark.parametrize("guidance", [1.0, 7.5])
@pytest.mark.parametrize("vectors", [0, 2])
def test_maps_are_those_of_the_reference(
    tiny_pipe: StableDiffusionPipeline, new_subject: NewSubject, guidance: float, vectors: int
) -> None:
    studio, subject = Studio(tiny_pipe), new_subject(vectors=vectors)
    studio.load(subject)
    positions = word_positions(tiny_pipe.tokenizer, PROMPT, "sks dog")
    request = DrawRequest(PROMPT, subjects={"dog": 0.5}, seed=1, steps=3, guidance_scale=guidance)
    with heard(tiny_pipe.unet) as inputs, recording(tiny_pipe.unet, positions) as recorder:
        studio.draw(request)
    found = recorder.layer_means()
    assert found.keys() == select_layers(tiny_pipe.unet, CROSS).keys()
    for path, attn in select_layers(tiny_pipe.unet, CROSS).items():
        for number, coeff in enumerate((torch.zeros_like(subject[path]), 0.5 * subject[path])):
            steps = [reference(attn, hidden[-1], context[-1], coeff, positions) for hidden, context in inputs[path]]
            torch.testing.assert_close(found[path][number], torch.stack(steps).mean(0), atol=1e-6, rtol=1e-5)
        assert not torch.allclose(found[path][0], found[path][1])


def test_maps_of_one_resolution_are_averaged(tiny_pipe: StableDiffusionPipeline) -> None:
    with recording(tiny_pipe.unet, [1]) as recorder:
        Studio(tiny_pipe).draw(DrawRequest("a dog", seed=1, steps=1, width=24))
    maps, means = recorder.maps(), recorder.layer_means()
    assert [(tuple(one.before.shape), one.layers) for one in maps] == [((8, 12), 3), ((4, 6), 4)]
    coarse = torch.stack([mean[0] for mean in means.values() if mean.shape[-1] == 24]).mean(0)
    torch.testing.assert_close(maps[1].before, coarse.view(4, 6))


def test_odd_sizes_keep_their_shape(tiny_pipe: StableDiffusionPipeline) -> None:
    with recording(tiny_pipe.unet, [1]) as recorder, torch.no_grad():
        tiny_pipe.unet(torch.randn(1, 4, 7, 5), 0, encoder_hidden_states=torch.randn(1, 77, 32))
    assert [tuple(one.before.shape) for one in recorder.maps()] == [(7, 5), (4, 3)]


def test_all_tokens_together_get_all_attention(tiny_pipe: StableDiffusionPipeline) -> None:
    with recording(tiny_pipe.unet, range(77)) as recorder:
        Studio(tiny_pipe).draw(DrawRequest("a dog", seed=1, steps=2))
    for one in recorder.maps():
        torch.testing.assert_close(one.before, torch.ones_like(one.before))


@pytest.mark.parametrize("strengths", [{}, {"dog": 1.0}])
def test_recording_changes_no_picture_and_leaves_nothing(
    tiny_pipe: StableDiffusionPipeline, new_subject: NewSubject, strengths: dict[str, float]
) -> None:
    studio = Studio(tiny_pipe)
    if strengths:
        studio.load(new_subject(vectors=1))
    request = DrawRequest(PROMPT, subjects=strengths, seed=1, steps=2)
    before = studio.draw(request)[0].image
    hooks = [len(module._forward_hooks) for module in tiny_pipe.unet.modules()]
    with recording(tiny_pipe.unet, [1, 2]) as recorder:
        during = studio.draw(request)[0].image
    assert during.tobytes() == before.tobytes() == studio.draw(request)[0].image.tobytes()
    assert [len(module._forward_hooks) for module in tiny_pipe.unet.modules()] == hooks
    for layer in recorder.layers.values():
        held = [value for value in vars(layer).values() if isinstance(value, torch.Tensor)]
        assert layer.steps == 2
        assert sum(tensor.numel() for tensor in held) <= 2 * 64 + 2  # one sum of the steps, before and after; positions
        assert all(tensor.grad_fn is None for tensor in held)


def test_without_effect_after_is_before(tiny_pipe: StableDiffusionPipeline, new_subject: NewSubject) -> None:
    studio = Studio(tiny_pipe)
    with recording(tiny_pipe.unet, [1]) as recorder:
        studio.draw(DrawRequest("a dog", seed=1, steps=1))
    assert all(torch.equal(one.before, one.after) for one in recorder.maps())
    studio.load(new_subject())
    with recording(tiny_pipe.unet, [1]) as recorder:
        studio.draw(DrawRequest("a dog", subjects={"dog": 1.0}, seed=1, steps=1))  # gated: no trigger in the prompt
    assert all(torch.equal(one.before, one.after) for one in recorder.maps())


def test_where_nothing_was_drawn_there_are_no_maps(tiny_pipe: StableDiffusionPipeline) -> None:
    with recording(tiny_pipe.unet, [1]) as recorder:
        pass
    with pytest.raises(StudioError, match="no attention maps were recorded"):
        recorder.maps()


def test_words_are_found(tiny_pipe: StableDiffusionPipeline, new_subject: NewSubject) -> None:
    def places(prompt: str, word: str) -> list[str]:
        tokens = tiny_pipe.tokenizer.convert_ids_to_tokens(tiny_pipe.tokenizer(prompt).input_ids)
        return [tokens[place] for place in word_positions(tiny_pipe.tokenizer, prompt, word)]

    assert word_positions(tiny_pipe.tokenizer, "a dog, a DOG on grass", "Dog") == [2, 5]
    assert places("the dog on grass", "dog on") == ["dog</w>", "on</w>"]
    assert places("a café dog", "café") == ["ca", "f", "Ã", "©</w>"]
    assert word_positions(tiny_pipe.tokenizer, "xdog a dog", "dog") == [4]  # not the end of another word
    assert len(places(PROMPT, "sks dog")) == 4  # not learned: three letters, then a word the tokenizer knows
    load_coefficients(tiny_pipe, new_subject(vectors=2))
    assert word_positions(tiny_pipe.tokenizer, "a Sks  dog's dog", "sks dog") == [2, 3]
    assert places("a Sks  dog's dog", "dog") == ["dog</w>"]


def test_words_that_are_not_there_are_refused(tiny_pipe: StableDiffusionPipeline, new_subject: NewSubject) -> None:
    load_coefficients(tiny_pipe, new_subject(vectors=2))
    tokenizer = tiny_pipe.tokenizer
    with pytest.raises(StudioError, match="'cat' is not in the prompt; its words are: a, sks  dog, on, Grass, cats$"):
        word_positions(tokenizer, "a sks  dog, on a Grass: cats!", "cat")
    with pytest.raises(StudioError, match="'dog' is not in the prompt; its words are: a, sks dog$"):
        word_positions(tokenizer, "a sks dog", "dog")
    with pytest.raises(StudioError, match="choose a word of the prompt; its words are: a, dog"):
        word_positions(tokenizer, "a dog", "  ")
    with pytest.raises(StudioError, match=r"its words are: \(none\)"):
        word_positions(tokenizer, "", "dog")
    with pytest.raises(StudioError, match="'cat' stands behind the 75 tokens that the base reads"):
        word_positions(tokenizer, "dog " * 75 + "cat", "cat")
    assert word_positions(tokenizer, "dog " * 74 + "cat", "cat") == [75]
    assert word_positions(tokenizer, "dog " * 100, "dog") == list(range(1, 76))
