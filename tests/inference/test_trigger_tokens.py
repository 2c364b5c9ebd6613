"""Learned triggers: vectors beside the base's table, tokens of their own, and back."""

import copy
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from hypothesis import given, settings
from hypothesis import strategies as st
from test_trigger import WITH, WITHOUT

from coeff_diffusion import CoefficientsError
from coeff_diffusion.inference.trigger import contains_trigger, reads_trigger
from coeff_diffusion.inference.trigger_tokens import (
    TriggerEmbedding,
    add_trigger,
    initial_vectors,
    remove_trigger,
    without_triggers,
)


@pytest.fixture
def parts(tiny_pipe: StableDiffusionPipeline) -> tuple[Any, Any, Any]:
    """A tokenizer that stays as it is, another one to be taught, and the text encoder."""
    return copy.deepcopy(tiny_pipe.tokenizer), tiny_pipe.tokenizer, tiny_pipe.text_encoder.requires_grad_(False)


def encode(tokenizer: Any, text_encoder: Any, prompt: str) -> torch.Tensor:
    ids = tokenizer(prompt, padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids
    return text_encoder(ids)[0]


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("prompt", WITH)
def test_the_whole_trigger_is_read_as_its_vectors(parts: tuple[Any, Any, Any], prompt: str, count: int) -> None:
    plain, tokenizer, text_encoder = parts
    vectors = torch.randn(count, 32)
    base = encode(tokenizer, text_encoder, prompt)
    add_trigger(tokenizer, text_encoder, "dog", "sks dog", vectors)
    ids = torch.tensor(tokenizer(prompt).input_ids)
    embeddings = text_encoder.get_input_embeddings()(ids)
    learned = ids >= len(plain)
    assert torch.equal(embeddings[learned], vectors.repeat(int(learned.sum()) // count, 1))
    words = [token for token in tokenizer.tokenize(prompt) if token not in tokenizer.added_tokens_encoder]
    assert len(words) < len(plain.tokenize(prompt))
    assert not torch.allclose(encode(tokenizer, text_encoder, prompt), base, atol=1e-2)


@pytest.mark.parametrize("prompt", WITHOUT)
def test_other_prompts_are_the_base_bitwise(parts: tuple[Any, Any, Any], prompt: str) -> None:
    plain, tokenizer, text_encoder = parts
    base = encode(tokenizer, text_encoder, prompt)
    add_trigger(tokenizer, text_encoder, "dog", "sks dog", torch.randn(3, 32))
    assert tokenizer(prompt).input_ids == plain(prompt).input_ids
    assert torch.equal(encode(tokenizer, text_encoder, prompt), base)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.text(alphabet=list("skdogSKDOG _-.,'(<>0ßÉé\n\u0308"), max_size=12), st.text(max_size=4))
def test_the_gate_and_the_tokenizer_agree(plain_and_taught: tuple[Any, Any], text: str, more: str) -> None:
    plain, taught = plain_and_taught
    for prompt in (text, f"{more}sks dog{text}", f"{text}Sks  dog{more}"):
        read = max(taught(prompt).input_ids) >= len(plain)
        assert read == contains_trigger(prompt, "sks dog"), repr(prompt)


@pytest.fixture(scope="module")
def plain_and_taught(tiny_base_dir: Any) -> tuple[Any, Any]:
    pipe = StableDiffusionPipeline.from_pretrained(tiny_base_dir, unet=None, vae=None)
    plain = copy.deepcopy(pipe.tokenizer)
    add_trigger(pipe.tokenizer, pipe.text_encoder, "dog", "sks dog", torch.randn(2, 32))
    return plain, pipe.tokenizer


def test_several_triggers_come_and_go(parts: tuple[Any, Any, Any]) -> None:
    plain, tokenizer, text_encoder = parts
    prompt = "a sks dog and a zwx cat, and <0>"
    vectors = {"dog": torch.randn(2, 32), "cat": torch.randn(1, 32), "zero": torch.randn(3, 32)}
    triggers = {"dog": "sks dog", "cat": "zwx cat", "zero": "<0>"}
    alone = {}
    for name in vectors:
        add_trigger(tokenizer, text_encoder, name, triggers[name], vectors[name])
        alone[name] = encode(tokenizer, text_encoder, triggers[name])
        remove_trigger(text_encoder, name)
    for name in vectors:
        add_trigger(tokenizer, text_encoder, name, triggers[name], vectors[name])
    assert text_encoder.get_input_embeddings().vectors.keys() == vectors.keys()
    assert max(tokenizer(prompt).input_ids) == len(plain) + 5
    for name in ("dog", "zero", "cat"):
        for left in text_encoder.get_input_embeddings().vectors:
            assert torch.equal(encode(tokenizer, text_encoder, triggers[left]), alone[left])
        remove_trigger(text_encoder, name)
    assert tokenizer(prompt).input_ids == plain(prompt).input_ids


def test_removing_the_last_gives_back_the_very_same_objects(parts: tuple[Any, Any, Any]) -> None:
    _plain, tokenizer, text_encoder = parts
    embedding, keys, words = text_encoder.get_input_embeddings(), set(text_encoder.state_dict()), len(tokenizer)
    weight, backend, serialized = embedding.weight.clone(), tokenizer._tokenizer, tokenizer._tokenizer.to_str()
    add_trigger(tokenizer, text_encoder, "dog", "sks dog", torch.randn(2, 32))
    assert len(tokenizer) == words + 2
    remove_trigger(text_encoder, "dog")
    assert tokenizer._tokenizer is backend
    assert text_encoder.get_input_embeddings() is embedding
    assert torch.equal(embedding.weight, weight)
    assert set(text_encoder.state_dict()) == keys
    assert backend.to_str() == serialized


def test_while_taught_the_text_encoder_is_still_the_stock_model(parts: tuple[Any, Any, Any]) -> None:
    _plain, tokenizer, text_encoder = parts
    state = {key: value.clone() for key, value in text_encoder.state_dict().items()}
    embedding = text_encoder.get_input_embeddings()
    add_trigger(tokenizer, text_encoder, "dog", "sks dog", torch.randn(2, 32), trainable=True)
    assert text_encoder.state_dict().keys() == state.keys()
    assert all(torch.equal(text_encoder.state_dict()[key], value) for key, value in state.items())
    text_encoder.to(torch.float16)
    assert encode(tokenizer, text_encoder, "a sks dog").dtype == torch.float16
    assert text_encoder.get_input_embeddings().vectors["dog"].dtype == torch.float32
    remove_trigger(text_encoder, "dog")
    assert text_encoder.get_input_embeddings() is embedding
    assert embedding.weight.dtype == torch.float16


def test_only_the_vectors_learn(parts: tuple[Any, Any, Any]) -> None:
    _plain, tokenizer, text_encoder = parts
    add_trigger(tokenizer, text_encoder, "dog", "sks dog", torch.randn(2, 32), trainable=True)
    encode(tokenizer, text_encoder, "a photo of sks dog").square().sum().backward()
    vectors = text_encoder.get_input_embeddings().vectors["dog"]
    assert isinstance(vectors, torch.nn.Parameter)
    assert vectors.grad is not None
    assert (vectors.grad.abs().sum(1) > 0).all()
    assert all(parameter.grad is None for parameter in text_encoder.parameters())


@pytest.mark.parametrize(
    ("name", "trigger", "shape", "message"),
    [
        ("dog", "zwx", (1, 32), "'dog' already has a trigger, 'sks dog'"),
        ("cat", "sks dog", (1, 32), "'sks dog' of 'cat' clashes with 'sks dog' of 'dog'"),
        ("cat", "SKS", (1, 32), "'SKS' of 'cat' clashes with 'sks dog' of 'dog'"),
        ("cat", "my sks dog here", (1, 32), "clashes with 'sks dog' of 'dog'"),
        ("cat", "<|endoftext|>", (1, 32), r"clashes with the tokenizer's token '<\|endoftext\|>'"),
        ("cat", "my <toy>", (1, 32), r"'my <toy>' of 'cat' clashes with the tokenizer's token '<toy>'"),
        ("cat", " - ", (1, 32), "expected at least one letter or digit"),
        ("cat", "zwx", (1, 16), r"'zwx' is \[1, 16\], but this text encoder takes \[vectors, 32\]"),
        ("cat", "zwx", (0, 32), r"'zwx' is \[0, 32\]"),
        ("cat", "zwx", (32,), r"'zwx' is \[32\]"),
    ],
)
def test_clashes_are_an_error_and_change_nothing(
    parts: tuple[Any, Any, Any], name: str, trigger: str, shape: tuple[int, ...], message: str
) -> None:
    _plain, tokenizer, text_encoder = parts
    tokenizer.add_tokens("<toy>")
    add_trigger(tokenizer, text_encoder, "dog", "sks dog", torch.randn(1, 32))
    with pytest.raises(CoefficientsError, match=message):
        add_trigger(tokenizer, text_encoder, name, trigger, torch.zeros(shape))
    assert list(text_encoder.get_input_embeddings().vectors) == ["dog"]


def test_a_failed_first_trigger_leaves_the_embedding(parts: tuple[Any, Any, Any]) -> None:
    _plain, tokenizer, text_encoder = parts
    with pytest.raises(CoefficientsError):
        add_trigger(tokenizer, text_encoder, "dog", "sks dog", torch.randn(1, 16))
    assert not isinstance(text_encoder.get_input_embeddings(), TriggerEmbedding)
    with pytest.raises(CoefficientsError, match="knows no trigger of 'dog'"):
        remove_trigger(text_encoder, "dog")


@torch.no_grad()
def test_initial_vectors_are_the_mean_of_the_class_word(parts: tuple[Any, Any, Any]) -> None:
    _plain, tokenizer, text_encoder = parts
    table = text_encoder.get_input_embeddings().weight
    ids = tokenizer("red cat", add_special_tokens=False).input_ids
    assert len(ids) == 2
    start = initial_vectors(tokenizer, text_encoder, "red cat", 3)
    torch.testing.assert_close(start[0], table[ids].mean(0))
    assert 0 < (start[1] - start[0]).abs().max() < start[0].abs().max()
    assert not torch.equal(start[1], start[2])
    assert torch.equal(start, initial_vectors(tokenizer, text_encoder, "red cat", 3))
    for word, count in (("", 1), ("dog", 0)):
        with pytest.raises(CoefficientsError, match="cannot start"):
            initial_vectors(tokenizer, text_encoder, word, count)


def test_pipelines_that_share_an_encoder_share_a_trigger(parts: tuple[Any, Any, Any]) -> None:
    plain, tokenizer, text_encoder = parts
    vectors = torch.randn(2, 32)
    assert add_trigger(tokenizer, text_encoder, "dog", "sks dog", vectors) == "dog"
    assert add_trigger(tokenizer, text_encoder, "rex", "SKS  dog", vectors) == "dog"
    with pytest.raises(CoefficientsError, match="clashes with 'sks dog' of 'dog'"):
        add_trigger(tokenizer, text_encoder, "other", "sks dog", torch.randn(2, 32))
    remove_trigger(text_encoder, "dog")
    assert max(tokenizer("a sks dog").input_ids) >= len(plain)
    remove_trigger(text_encoder, "dog")
    assert tokenizer("a sks dog").input_ids == plain("a sks dog").input_ids


def test_another_tokenizer_is_refused(parts: tuple[Any, Any, Any]) -> None:
    plain, tokenizer, text_encoder = parts
    add_trigger(tokenizer, text_encoder, "dog", "sks dog", torch.randn(1, 32))
    with pytest.raises(CoefficientsError, match="with another tokenizer"):
        add_trigger(plain, text_encoder, "cat", "zwx cat", torch.randn(1, 32))


def test_words_are_added_while_the_triggers_are_aside(parts: tuple[Any, Any, Any]) -> None:
    """As a textual inversion does it: a token more, and a larger table."""
    plain, tokenizer, text_encoder = parts
    vectors = torch.randn(2, 32)
    add_trigger(tokenizer, text_encoder, "dog", "sks dog", vectors)
    with without_triggers(text_encoder):
        tokenizer.add_tokens("<toy>")
        text_encoder.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        text_encoder.get_input_embeddings().weight.data[-1] = 7.0
    ids = torch.tensor(tokenizer("<toy> sks dog", add_special_tokens=False).input_ids)
    assert ids.tolist() == [len(plain), len(plain) + 1, len(plain) + 2]
    assert torch.equal(text_encoder.get_input_embeddings()(ids), torch.cat([torch.full((1, 32), 7.0), vectors]))
    remove_trigger(text_encoder, "dog")
    assert tokenizer("<toy>", add_special_tokens=False).input_ids == [len(plain)]
    assert len(text_encoder.get_input_embeddings().weight) == len(plain) + 1


@pytest.mark.parametrize("taught", [False, True])
def test_a_trigger_behind_the_last_token_is_not_read(parts: tuple[Any, Any, Any], taught: bool) -> None:
    _, tokenizer, text_encoder = parts
    if taught:
        add_trigger(tokenizer, text_encoder, "dog", "sks dog", torch.randn(2, 32))
    length = 2 if taught else len(tokenizer("sks dog", add_special_tokens=False).input_ids)
    room = tokenizer.model_max_length - 2  # beginning and end have tokens of their own
    assert reads_trigger(tokenizer, f"{'red ' * (room - length)}sks dog{' red' * 9}", "sks dog")
    assert not reads_trigger(tokenizer, f"{'red ' * (room - length + 1)}sks dog", "sks dog")
    assert not reads_trigger(tokenizer, "a dog", "sks dog")
    assert reads_trigger(tokenizer, f"sks dog {'red ' * room}sks dog", "sks dog")
