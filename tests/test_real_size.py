"""Everything a user does, on bases whose tokenizers, text encoders, layers and files are those of real checkpoints.

Only the UNet and the autoencoder are narrow, and the text encoders have few layers (`tools/real_size_models.py`).
"""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from PIL import Image, ImageDraw
from single_file import write_original_checkpoint

from coeff_diffusion import (
    Coefficients,
    CoefficientsInfo,
    describe_base,
    layer_heads,
    load_base,
    load_coefficients,
    unload_coefficients,
)
from coeff_diffusion.cli import main
from coeff_diffusion.families.fingerprint import base_hash, weight_sample
from coeff_diffusion.images.files import read_parameters
from coeff_diffusion.inference.attention_maps import word_positions
from coeff_diffusion.sources.image_card import extract
from tools.clip_tokenizer import VocabularyError, clip_tokenizer
from tools.real_size_models import FAMILIES, VOCABULARY, write_base

BEGIN, END = 49_406, 49_407
HEADS = {"sd15": [8], "sd21": [5, 10, 20]}
TEXT_HEADS = {f"text_encoder/text_model.encoder.layers.{number}.self_attn": 12 for number in range(2)}  # of 1.x
PROMPT = "a photo of a sks dog, on the beach!"


@pytest.fixture(scope="session")
def base_of(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Path]]:
    """The folder of a base, made when it is first asked for.

    Where CLIP's vocabulary cannot be had, that is a failure in CI and skips the test elsewhere.
    """
    folder = tmp_path_factory.mktemp("real")

    def of(family: str) -> Path:
        if not (folder / family).exists():
            try:
                write_base(family, folder / family)
            except VocabularyError as error:
                (pytest.fail if os.environ.get("CI", "").lower() == "true" else pytest.skip)(str(error))
        return folder / family

    yield of
    shutil.rmtree(folder)  # a gigabyte, which pytest would keep


@pytest.fixture(scope="session", params=["sd15", "sd21"])
def base(request: pytest.FixtureRequest, base_of: Callable[[str], Path]) -> Path:
    """The folder of a base with one text encoder."""
    return base_of(request.param)


@pytest.fixture(scope="session")
def run(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of three steps of training."""
    folder = tmp_path_factory.mktemp(base.name)
    photos = folder / "photos"
    photos.mkdir()
    for number in range(2):
        image = Image.new("RGB", (80, 64 + 16 * number), (40 * number, 120, 200))
        ImageDraw.Draw(image).ellipse((8, 8, 50, 50), fill=(255, 90 * number, 20))
        image.save(photos / f"{number}.png")
    # 1.x learns the heads of its text encoder as well.
    train(base, photos, folder / "run", layers="all+text" if base.name == "sd15" else "all")
    return folder / "run"


def train(base: Path, photos: Path, run: Path, **more: object) -> None:
    options: dict[str, object] = {
        "pretrained_model_name_or_path": base,
        "instance_data_dir": photos,
        "class_word": "dog",
        "max_train_steps": 3,
        "train_batch_size": 1,
        "cached_views": 1,
        "validation_steps": 3,
        "num_validation_images": 1,
        "timeline_steps": 1,
        "checkpointing_steps": 2,
        "output_dir": run,
        **more,
    }
    flags = [text for name, value in options.items() for text in (f"--{name}", str(value))]
    assert main(["train", *flags]) == 0


def generate(base: Path, out: Path, *flags: object) -> list[Path]:
    """The pictures, in the order they were saved."""
    before = set(out.iterdir()) if out.exists() else set()
    assert main(["generate", "--base", str(base), "--output_dir", str(out), *map(str, flags)]) == 0
    return sorted(set(out.iterdir()) - before)


def pixels(picture: Path | Image.Image) -> np.ndarray:
    if isinstance(picture, Image.Image):
        return np.asarray(picture)
    with Image.open(picture) as image:
        return np.asarray(image)


def same(first: Path | Image.Image, second: Path | Image.Image) -> bool:
    return np.array_equal(pixels(first), pixels(second))


def draw(pipe: Any, prompt: str) -> Image.Image:
    return pipe(prompt, num_inference_steps=2, generator=torch.Generator().manual_seed(0)).images[0]


def subject_for(pipe: Any, **widths: int) -> Coefficients:
    """Random matrices and, by text encoder, random vectors of about the size of real embeddings."""
    generator = torch.Generator().manual_seed(1)
    heads = layer_heads(pipe.unet)
    coeffs = {path: 0.3 * torch.randn(count, count, generator=generator) for path, count in heads.items()}
    tokens = {owner: 0.02 * torch.randn(1, width, generator=generator) for owner, width in widths.items()}
    info = CoefficientsInfo(name="dog", trigger="sks dog", class_word="dog", **describe_base(pipe.unet))
    return Coefficients(coeffs, tokens, info)


# --- the commands -----------------------------------------------------------------------------------------------------


def test_a_training_leaves_its_files(run: Path, base: Path) -> None:
    assert sorted(path.relative_to(run).as_posix() for path in run.rglob("*") if path.is_file()) == [
        "README.md",
        "checkpoints/step_000002.safetensors",
        "coefficients.safetensors",
        "config.yaml",
        "samples/step_000000_0.png",
        "samples/step_000003_0.png",
        "timeline.safetensors",
    ]
    subject = Coefficients.load(run)
    of_unet, of_text = subject.of_text_encoder(""), subject.of_text_encoder("text_encoder")
    assert len(of_unet) == 32
    assert sorted({len(coeff) for coeff in of_unet.values()}) == HEADS[base.name]
    assert {path: len(coeff) for path, coeff in of_text.items()} == (TEXT_HEADS if base.name == "sd15" else {})
    assert {owner: list(token.shape) for owner, token in subject.tokens.items()} == {
        "text_encoder": [1, FAMILIES[base.name].texts[0]["hidden_size"]]
    }
    assert all(coeff.any() for coeff in subject.values())
    assert subject.info.prediction_type == ("v_prediction" if base.name == "sd21" else "epsilon")
    assert main(["verify", str(run), "--base", str(base)]) == 0


def test_a_killed_training_goes_on_exactly(run: Path, base: Path, tmp_path: Path) -> None:
    checkpoint = run / "checkpoints" / "step_000002.safetensors"
    layers = "all+text" if base.name == "sd15" else "all"
    train(base, run.parent / "photos", tmp_path / "again", resume_from_checkpoint=checkpoint, layers=layers)
    assert (tmp_path / "again" / "coefficients.safetensors").read_bytes() == (
        run / "coefficients.safetensors"
    ).read_bytes()


def test_pictures_come_again_bit_by_bit(run: Path, base: Path, tmp_path: Path) -> None:
    asked = ["--prompt", PROMPT, "--num_inference_steps", 2, "--seed", 3, "--subject", f"{run}:0.8"]
    alone, drawn = generate(base, tmp_path / "drawn", *asked, "--compare")
    assert not same(alone, drawn)
    assert len(read_parameters(drawn).base_hash or "") == 12
    assert main(["card", str(run), str(drawn), "-o", str(tmp_path / "card.png")]) == 0
    (carrying,) = generate(base, tmp_path / "drawn", *asked, "--embed_subjects")
    for card in (carrying, tmp_path / "card.png"):
        assert extract(card) == [Coefficients.load(run)]
        (again,) = generate(base, tmp_path / "again", "--from", card)
        assert same(again, drawn)
        assert read_parameters(again) == read_parameters(drawn)


def test_other_prompts_are_left_to_the_base(run: Path, base: Path, tmp_path: Path) -> None:
    asked = ["--prompt", "a photo of a cat", "--num_inference_steps", 2, "--seed", 3]
    assert same(*generate(base, tmp_path, *asked), *generate(base, tmp_path, *asked, "--subject", run))


def test_a_single_checkpoint_is_the_same_base(base_of: Callable[[str], Path], tmp_path: Path) -> None:
    base = base_of("sd15")
    pipe = load_base(base)
    path = write_original_checkpoint(pipe, tmp_path / "v1-5.safetensors")
    loaded = load_base(path, config=base, dtype="float16")
    assert base_hash(loaded.unet, loaded.text_encoder, loaded.vae.decoder) == base_hash(
        *(part.half() for part in (pipe.unet, pipe.text_encoder, pipe.vae.decoder))
    )


# --- words ------------------------------------------------------------------------------------------------------------


def test_the_vocabulary_is_that_of_clip(base_of: Callable[[str], Path]) -> None:
    base_of("sd15")  # skips where there is no vocabulary
    tokenizer = clip_tokenizer()
    assert len(tokenizer) == VOCABULARY
    assert tokenizer("a photo of a cat").input_ids == [BEGIN, 320, 1125, 539, 320, 2368, END]
    tokens = ["!", "Ń", "!</w>", "Ń</w>", "in", "jekyll</w>", "<|startoftext|>", "<|endoftext|>"]
    assert tokenizer.convert_ids_to_tokens([0, 255, 256, 511, 512, BEGIN - 1, BEGIN, END]) == tokens
    for text in ("", "Ärger über 犬 & 🐕", "it's 3.14!\n\tOK", "<|endoftext|> within"):
        ids = tokenizer(text).input_ids
        assert (ids[0], ids[-1]) == (BEGIN, END)
        assert max(ids) < VOCABULARY


def test_checkpoints_bring_this_tokenizer(base: Path) -> None:
    """As they are published: `vocab.json` and `merges.txt`, from which transformers makes the tokenizer anew."""
    (pad,) = FAMILIES[base.name].pads
    expected, loaded = clip_tokenizer(pad), load_base(base).tokenizer
    for text in (PROMPT, "Ärger über 犬 & 🐕", "it's 3.14!\n\tOK"):
        options = {"padding": "max_length", "truncation": True, "max_length": 77}
        assert loaded(text, **options).input_ids == expected(text, **options).input_ids


@pytest.fixture
def pipe(base: Path) -> StableDiffusionPipeline:
    return load_base(base)


def ids_of(tokenizer: Any, prompt: str) -> list[int]:
    """As the pipeline asks."""
    return tokenizer(prompt, padding="max_length", max_length=77, truncation=True).input_ids


@pytest.mark.parametrize("count", [1, 3])
def test_a_trigger_is_read_as_ids_behind_the_vocabulary(pipe: StableDiffusionPipeline, count: int) -> None:
    texts = ("a photo of a SKS  dog's ball", "sks dogs", "a sks dog and a sks cat")
    base = {text: ids_of(pipe.tokenizer, text) for text in texts}
    vectors = torch.randn(count, pipe.text_encoder.config.hidden_size)
    for word in ("dog", "cat"):
        info = CoefficientsInfo(name=word, trigger=f"sks {word}")
        load_coefficients(pipe, Coefficients({}, {"text_encoder": vectors}, info))
    dog = list(range(VOCABULARY, VOCABULARY + count))
    ids = [BEGIN, 320, 1125, 539, 320, *dog, 568, 1_069, END]
    assert ids_of(pipe.tokenizer, texts[0])[: len(ids)] == ids
    assert ids_of(pipe.tokenizer, texts[1]) == base[texts[1]]
    assert sorted(set(ids_of(pipe.tokenizer, texts[2])) - set(base[texts[2]])) == [*dog, *(i + count for i in dog)]
    table = pipe.text_encoder.get_input_embeddings()
    embeddings = table(torch.tensor([*dog, BEGIN, 0, END]))
    assert torch.equal(embeddings[:count], vectors)
    assert torch.equal(embeddings[count:], table.weight[[BEGIN, 0, END]])
    unload_coefficients(pipe)
    assert {text: ids_of(pipe.tokenizer, text) for text in texts} == base
    assert type(pipe.text_encoder.get_input_embeddings()) is torch.nn.Embedding


def test_a_long_prompt_is_cut_at_77_tokens(pipe: StableDiffusionPipeline) -> None:
    base_embeddings = pipe.encode_prompt("a photo of a cat", "cpu", 1, False)[0]
    load_coefficients(pipe, subject_for(pipe, text_encoder=pipe.text_encoder.config.hidden_size))
    words = "cat " * 100
    first = ids_of(pipe.tokenizer, f"a sks dog, {words}")
    assert (len(first), first[2], first[-1]) == (77, VOCABULARY, END)
    last = ids_of(pipe.tokenizer, f"a {words} sks dog")
    assert (len(last), max(last)) == (77, END)  # the learned word is cut off
    with pytest.warns(UserWarning, match="tokens are cut off"):
        assert draw(pipe, f"a sks dog, {words}").size == (64, 64)
    assert torch.equal(pipe.encode_prompt("a photo of a cat", "cpu", 1, False)[0], base_embeddings)


def test_words_are_found_where_they_stand(pipe: StableDiffusionPipeline) -> None:
    load_coefficients(pipe, subject_for(pipe, text_encoder=pipe.text_encoder.config.hidden_size))
    prompt = "a photo of a sks dog's ball, extraterrestrially red!"
    ids = ids_of(pipe.tokenizer, prompt)
    assert word_positions(pipe.tokenizer, prompt, "sks dog") == [ids.index(VOCABULARY)]
    assert word_positions(pipe.tokenizer, prompt, "ball") == [ids.index(1_069)]
    several = word_positions(pipe.tokenizer, prompt, "extraterrestrially")
    assert len(several) > 1
    assert several == list(range(several[0], several[-1] + 1))
    assert word_positions(pipe.tokenizer, prompt, "red") == [several[-1] + 1]


# --- which base it is -------------------------------------------------------------------------------------------------


def test_a_base_is_told_by_its_first_and_last_weights(pipe: StableDiffusionPipeline) -> None:
    parts = pipe.unet, pipe.text_encoder, pipe.vae.decoder
    known, sample = base_hash(*parts), weight_sample(pipe.unet)
    assert known is not None
    assert len(sample) == 24
    load_coefficients(pipe, subject_for(pipe, text_encoder=pipe.text_encoder.config.hidden_size))
    assert base_hash(*parts) == known
    unload_coefficients(pipe)
    table = pipe.text_encoder.get_input_embeddings().weight
    assert table.numel() > 2**24  # where float32 can no longer count
    with torch.no_grad():
        table[-1, -1] += 1
    assert base_hash(*parts) != known
    assert weight_sample(pipe.unet) == sample


# --- two text encoders ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def xl_run(base_of: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of one step of training."""
    folder = tmp_path_factory.mktemp("xl")
    Image.new("RGB", (96, 64), (40, 120, 200)).save(folder / "0.png")
    (folder / "photos").mkdir()
    (folder / "0.png").rename(folder / "photos" / "0.png")
    train(base_of("sdxl"), folder / "photos", folder / "run", max_train_steps=1, validation_steps=0)
    return folder / "run"


def test_a_subject_of_xl_is_small(xl_run: Path, base_of: Callable[[str], Path], capsys: Any) -> None:
    """Both blocks that B-LoRA found and the finest layers, a token for each encoder and for each of the two stages."""
    file = xl_run / "coefficients.safetensors"
    assert file.stat().st_size < 40_000
    subject = Coefficients.load(file)
    assert (len(subject), sum(coeff.numel() for coeff in subject.values())) == (32, 9_200)
    assert {owner: token.shape[1] for owner, token in subject.tokens.items()} == {
        "text_encoder": 768,
        "text_encoder_2": 1280,
    }
    assert {stage: token.shape[1] for stage, token in subject.stage_tokens.items()} == {
        "up_blocks.0": 2048,
        "up_blocks.1": 2048,
    }
    assert subject.info.base_architecture == "custom"  # it is narrow
    capsys.readouterr()
    assert main(["verify", str(xl_run), "--base", str(base_of("sdxl"))]) == 0
    assert main(["info", str(file)]) == 0
    those = "up_blocks.0.attentions.[01].*.attn2, up_blocks.1.*"
    assert f"32 (6 self, 26 cross), those of {those}" in capsys.readouterr().out


@pytest.fixture
def xl_pipe(base_of: Callable[[str], Path]) -> StableDiffusionXLPipeline:
    pipe = StableDiffusionXLPipeline.from_pretrained(base_of("sdxl"), local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_xl_draws_with_a_subject_and_gives_the_base_back(xl_pipe: StableDiffusionXLPipeline, tmp_path: Path) -> None:
    tokenizers = xl_pipe.tokenizer, xl_pipe.tokenizer_2
    words = [ids_of(tokenizer, PROMPT) for tokenizer in tokenizers]
    subject = subject_for(xl_pipe, text_encoder=768, text_encoder_2=1280)
    assert (len(subject), {len(coeff) for coeff in subject.values()}) == (140, {10, 20})
    subject.save(tmp_path / "dog.safetensors")
    before, other = draw(xl_pipe, PROMPT), draw(xl_pipe, "a photo of a cat")
    load_coefficients(xl_pipe, tmp_path / "dog.safetensors")
    assert not same(draw(xl_pipe, PROMPT), before)
    assert same(draw(xl_pipe, "a photo of a cat"), other)
    for tokenizer, pad in ((xl_pipe.tokenizer, END), (xl_pipe.tokenizer_2, 0)):
        ids = ids_of(tokenizer, "a sks dog")
        assert ids == [BEGIN, 320, VOCABULARY, END, *[pad] * 73]
    unload_coefficients(xl_pipe)
    assert (xl_pipe.tokenizer, xl_pipe.tokenizer_2) == tokenizers
    assert [ids_of(tokenizer, PROMPT) for tokenizer in tokenizers] == words
    assert same(draw(xl_pipe, PROMPT), before)


def test_the_end_of_the_prompt_speaks_for_all_of_it(xl_pipe: StableDiffusionXLPipeline) -> None:
    """Configs from before 2023 make CLIP pool at the highest id, which would be the learned word's."""
    assert xl_pipe.text_encoder_2.config.eos_token_id == 2
    pooled = xl_pipe.encode_prompt("a dog")[2]
    load_coefficients(xl_pipe, subject_for(xl_pipe, text_encoder=768, text_encoder_2=1280))
    ids = torch.tensor([ids_of(xl_pipe.tokenizer_2, PROMPT)])
    encoder = xl_pipe.text_encoder_2
    output = encoder(ids)
    end = ids[0].tolist().index(END)
    expected = encoder.text_projection(output.last_hidden_state[:, end])
    torch.testing.assert_close(output.text_embeds, expected)
    assert torch.equal(xl_pipe.encode_prompt(PROMPT)[2], output.text_embeds)
    assert torch.equal(xl_pipe.encode_prompt("a dog")[2], pooled)
    unload_coefficients(xl_pipe)
    assert torch.equal(xl_pipe.encode_prompt("a dog")[2], pooled)
    assert xl_pipe.text_encoder_2.text_model.eos_token_id == 2
