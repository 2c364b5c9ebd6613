"""Pictures and prompts become batches: encoded once, drawn by seed and number."""

from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny, StableDiffusionPipeline
from PIL import Image, ImageOps

from coeff_diffusion.families.stable_diffusion import StableDiffusion
from coeff_diffusion.images.photo import DatasetError, read_image
from coeff_diffusion.inference.trigger_tokens import add_trigger, initial_vectors
from coeff_diffusion.training.dataset import Prompts, TrainingSet, fingerprint_files, picture_order
from coeff_diffusion.training.latents import Latents, Pictures, encode_pictures
from coeff_diffusion.training.photos import View, scale, view_tensor
from coeff_diffusion.training.picture_folder import find_pictures
from coeff_diffusion.training.seeds import mixed_seed
from coeff_diffusion.training.views import PictureViews, Views


def views_of(folder: Path, flip: bool = True, count: int = 3, seed: int = 0) -> PictureViews:
    return PictureViews(find_pictures(folder).pictures, 16, center_crop=False, random_flip=flip, count=count, seed=seed)


def encoded(*args: Any, **kwargs: Any) -> Latents:
    """What becomes of pictures that all have one size."""
    found = encode_pictures(*args, **kwargs)
    (group,) = found.groups
    assert found.places == Pictures.of(group).places
    return group


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# --- latents ----------------------------------------------------------------------------------------------------------


def test_views_are_the_same_in_any_order(subject_images: Path) -> None:
    views = views_of(subject_images)
    later, again = views[2].pixels, views_of(subject_images)[2].pixels
    assert torch.equal(later, again)
    assert [len(views[i].pixels) for i in range(len(views))] == [2, 3, 3, 2, 2]  # squares have two: plain and mirrored


def test_encoding_once_is_the_autoencoder_encoding(tiny_pipe: StableDiffusionPipeline, subject_images: Path) -> None:
    seen: list[int] = []
    latents = encoded(tiny_pipe.vae, views_of(subject_images, flip=False), 0, lambda: seen.append(1))
    assert len(seen) == len(latents) == 5
    assert latents.starts[0] == 0
    assert latents.starts[-1] == len(latents.mean)
    assert latents.std is not None
    pixels = views_of(subject_images, flip=False)[0].pixels
    with torch.no_grad():
        posterior = tiny_pipe.vae.encode(pixels).latent_dist
    factor = tiny_pipe.vae.config.scaling_factor
    torch.testing.assert_close(latents.mean[:1], posterior.mean * factor)
    torch.testing.assert_close(latents.std[:1], posterior.std * factor)
    assert latents.first_views().shape == (5, 4, 8, 8)


def test_an_encoded_picture_decodes_to_itself_in_scale(
    tiny_pipe: StableDiffusionPipeline, subject_images: Path
) -> None:
    """The scaling is the one that diffusers' pipeline undoes before it decodes."""
    latents = encoded(tiny_pipe.vae, views_of(subject_images, flip=False))
    with torch.no_grad():
        pixels = views_of(subject_images, flip=False)[4].pixels
        expected = tiny_pipe.vae.decode(tiny_pipe.vae.encode(pixels).latent_dist.mean)
        found = tiny_pipe.vae.decode(latents.first_views()[4:] / tiny_pipe.vae.config.scaling_factor)
    torch.testing.assert_close(found.sample, expected.sample)


def test_an_autoencoder_without_uncertainty(subject_images: Path) -> None:
    vae = AutoencoderTiny(
        encoder_block_out_channels=(4, 4), decoder_block_out_channels=(4, 4), num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1), latent_channels=3, scaling_factor=0.5, shift_factor=0.25,
    )  # fmt: skip
    latents = encoded(vae, views_of(subject_images, flip=False))
    assert latents.std is None
    with torch.no_grad():
        raw = vae.encode(views_of(subject_images, flip=False)[0].pixels).latents
    torch.testing.assert_close(latents.mean[:1], (raw - 0.25) * 0.5)
    assert torch.equal(Pictures.of(latents).sample([0], generator())[0].latents, latents.mean[:1])


def test_workers_change_nothing(tiny_pipe: StableDiffusionPipeline, subject_images: Path) -> None:
    state = torch.get_rng_state()
    alone = encoded(tiny_pipe.vae, views_of(subject_images))
    assert torch.equal(torch.get_rng_state(), state)
    helped = encoded(tiny_pipe.vae, views_of(subject_images), workers=1)
    assert torch.equal(alone.mean, helped.mean)
    assert alone.starts == helped.starts


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_picture_is_one_line_whoever_reads_it(
    tiny_pipe: StableDiffusionPipeline, tmp_path: Path, workers: int
) -> None:
    (tmp_path / "0.png").write_bytes(b"no picture")
    with pytest.raises(DatasetError) as caught:
        encode_pictures(tiny_pipe.vae, views_of(tmp_path), workers=workers)
    assert str(caught.value).startswith(f"{tmp_path / '0.png'} is not a readable picture")
    assert "\n" not in str(caught.value)


def test_samples_come_from_the_right_picture_and_all_its_views() -> None:
    mean = torch.arange(6.0).view(6, 1, 1, 1)
    pictures = Pictures.of(Latents(mean, torch.full_like(mean, 1e-3), (0, 1, 4, 6)))
    drawn = pictures.sample([0] * 50 + [1] * 50 + [2] * 50, generator())[0].latents.flatten()
    assert set(drawn[:50].round().tolist()) == {0}
    assert set(drawn[50:100].round().tolist()) == {1, 2, 3}
    assert set(drawn[100:].round().tolist()) == {4, 5}
    assert drawn.unique().numel() == 150  # each with noise of its own
    assert torch.equal(drawn[:3], pictures.sample([0] * 50 + [1] * 50 + [2] * 50, generator())[0].latents.flatten()[:3])


# --- prompts ----------------------------------------------------------------------------------------------------------


def encode(pipe: StableDiffusionPipeline) -> Any:
    return lambda texts: StableDiffusion().condition(pipe, texts, (16, 16))


def test_prompts_are_encoded_as_the_pipeline_does(tiny_pipe: StableDiffusionPipeline) -> None:
    texts = ["a dog", "a photo of the red dog on a beach"]
    prompts = Prompts(encode(tiny_pipe), texts, [False, False])
    expected = tiny_pipe.encode_prompt(texts, "cpu", 1, do_classifier_free_guidance=False)[0]
    torch.testing.assert_close(prompts.condition([0, 1])["prompt_embeds"], expected)
    again = prompts.condition([1, 1, 0])["prompt_embeds"]
    assert not again.requires_grad
    assert torch.equal(again[0], prompts.condition([1])["prompt_embeds"][0])


def test_live_prompts_follow_the_token(tiny_pipe: StableDiffusionPipeline) -> None:
    encoder = tiny_pipe.text_encoder.requires_grad_(False)
    start = initial_vectors(tiny_pipe.tokenizer, encoder, "dog", 2)
    add_trigger(tiny_pipe.tokenizer, encoder, "rex", "sks dog", start, trainable=True)
    vectors = encoder.get_input_embeddings().vectors["rex"]
    prompts = Prompts(encode(tiny_pipe), ["a sks dog", "a cat", "a Sks  Dog on grass"], [True, False, True])
    calls: list[int] = []
    encoder.register_forward_pre_hook(lambda module, args, kwargs: calls.append(len(args[0])), with_kwargs=True)
    found = prompts.condition([0, 0, 1, 2, 0])["prompt_embeds"]
    assert calls == [2]  # two live prompts, once each; the constant one is remembered
    assert found.shape[:2] == (5, 77)
    found.sum().backward()
    assert vectors.grad is not None
    assert bool(vectors.grad.abs().sum(1).all())
    with torch.no_grad():
        vectors += 1
    assert not torch.equal(prompts.condition([0])["prompt_embeds"], found[:1])
    assert torch.equal(prompts.condition([1])["prompt_embeds"], found[2:3].detach())


# --- order ------------------------------------------------------------------------------------------------------------


def test_every_picture_once_per_round() -> None:
    order = list(islice(picture_order(5, seed=3, position=0), 20))
    assert all(sorted(order[i : i + 5]) == [0, 1, 2, 3, 4] for i in range(0, 20, 5))
    assert order[:5] != order[5:10] or order[5:10] != order[10:15]


@pytest.mark.parametrize("position", [0, 1, 4, 5, 13])
def test_the_order_can_begin_anywhere(position: int) -> None:
    whole = list(islice(picture_order(5, seed=3, position=0), 30))
    assert list(islice(picture_order(5, seed=3, position=position), 10)) == whole[position : position + 10]


def test_batches_of_both_kinds(tiny_pipe: StableDiffusionPipeline) -> None:
    subject = Latents(torch.arange(3.0).view(3, 1, 1, 1), None, (0, 1, 2, 3))
    of_class = Latents(torch.arange(10.0, 14.0).view(4, 1, 1, 1), None, (0, 1, 2, 3, 4))
    prompts = Prompts(encode(tiny_pipe), ["a dog", "a red dog", "a cat"], [False] * 3)
    data = TrainingSet(Pictures.of(subject), Pictures.of(of_class), prompts, [0, 1, 0])
    ((rows, latents, weights, _),), prompt, num_class = data.batch(0, 3, seed=0, generator=generator())
    assert rows == list(range(6))
    assert weights is None
    assert sorted(latents[:3].flatten().tolist()) == [0, 1, 2]
    assert set(latents[3:].flatten().tolist()) < {10, 11, 12, 13}
    assert [prompt[i] for i in latents[:3].flatten().argsort()] == [0, 1, 0]
    assert (prompt[3:], num_class) == ([2, 2, 2], 3)
    assert TrainingSet(Pictures.of(subject), None, prompts, [0, 1, 0]).batch(0, 2, 0, generator()).num_class == 0


def test_mixed_seeds() -> None:
    seeds = {mixed_seed(a, b) for a in range(30) for b in range(30)}
    assert len(seeds) == 900
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert mixed_seed(1, 23) != mixed_seed(12, 3)


def test_fingerprint_follows_files_and_prompts(subject_images: Path) -> None:
    paths = find_pictures(subject_images).paths
    texts = ["a"] * 5
    first = fingerprint_files(paths, texts)
    assert fingerprint_files(paths, texts) == first
    assert fingerprint_files(paths, ["b", *texts[1:]]) != first
    assert fingerprint_files([*paths[1:], paths[0]], texts) != first
    masks: list[Path | None] = [None] * 5
    assert fingerprint_files(paths, texts, masks) == first
    of_each = {fingerprint_files(paths, texts, [*masks[:i], paths[0], *masks[i + 1 :]]) for i in range(5)}
    assert len(of_each | {first}) == 6  # a mask of another picture is another mask
    Image.new("RGB", (8, 8)).save(paths[0])
    assert fingerprint_files(paths, texts) != first


def test_views_are_cut_from_the_scaled_picture(subject_images: Path) -> None:
    pictures = find_pictures(subject_images).pictures
    views = PictureViews(pictures, 16, center_crop=True, random_flip=False, count=8, seed=0)
    image = scale(read_image(subject_images / "1.jpg"), (16, 16))
    assert image.size == (21, 16)
    assert torch.equal(views[1].pixels[0], view_tensor(image.crop((2, 0, 18, 16)), (16, 16), View(0, 0)))


def test_where_a_view_begins_is_counted_in_the_picture_that_is_seen(tmp_path: Path) -> None:
    """XL is told so where its picture was cut; of a mirrored view that is a place in the mirror image."""
    colours = np.random.default_rng(0).integers(0, 256, (16, 48, 3), dtype=np.uint8)
    Image.fromarray(colours).save(tmp_path / "1.png")
    seen = PictureViews(find_pictures(tmp_path).pictures, 16, center_crop=False, random_flip=True, count=12, seed=0)[0]
    image = read_image(tmp_path / "1.png")
    found = []
    for pixels, framing in zip(seen.pixels, seen.framings, strict=True):
        assert framing.original == (48, 16)
        cut = (view_tensor(one, (16, 16), View(*framing.crop)) for one in (image, ImageOps.mirror(image)))
        found.append([torch.equal(pixels, one) for one in cut])
    assert found.count([True, False]) > 2
    assert found.count([False, True]) > 2
    assert found.count([True, False]) + found.count([False, True]) == len(found)


def test_the_autoencoder_sees_a_few_small_pictures_or_one_large_one_at_once(tiny_pipe: StableDiffusionPipeline) -> None:
    """It needs gigabytes for a picture of a million pixels."""
    seen: list[tuple[int, int]] = []

    def encode(vae: Any, pixels: torch.Tensor) -> tuple[torch.Tensor, None]:
        seen.append((pixels.shape[-1], len(pixels)))
        return torch.zeros(len(pixels), 4, 1, 1), None

    given: Any = [
        Views(torch.zeros(count, 3, side, side), None, (), ()) for side, count in ((8, 9), (512, 5), (1024, 2))
    ]
    encode_pictures(tiny_pipe.vae, given, encode=encode)
    assert seen == [(8, 8), (8, 1), (512, 4), (512, 1), (1024, 1), (1024, 1)]


def test_what_is_measured_is_the_size_of_most_pictures_each_with_its_own_prompt() -> None:
    def latents(count: int, width: int) -> Latents:
        return Latents(torch.zeros(count, 4, 2, width), None, tuple(range(count + 1)))

    pictures = Pictures((latents(1, 3), latents(2, 2)), ((1, 0), (0, 0), (1, 1)))
    prompts = Prompts(lambda texts: {"text": torch.zeros(len(texts), 1)}, "abc", [False] * 3)
    held_out = Pictures((latents(1, 2), latents(3, 4)), ((0, 0), (1, 0), (1, 1), (1, 2)))
    shown, numbers = pictures.largest()
    assert (shown, numbers) == (pictures.groups[1], [0, 2])
    assert TrainingSet(pictures, None, prompts, [2, 1, 0]).probed == (pictures.groups[1], [2, 0])
    found, of = TrainingSet(pictures, None, prompts, [2, 1, 0], held_out, [0, 1, 2, 1]).probed
    assert (found, of) == (held_out.groups[1], [1, 2, 1])
