"""What training does on Stable Diffusion XL: sizes that it tells, shapes that it keeps, noise, averages, memory."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from PIL import Image

from coeff_diffusion import Coefficients, load_coefficients
from coeff_diffusion.images.photo import DatasetError
from coeff_diffusion.training.config import TrainConfig
from coeff_diffusion.training.noising import noised_part, part_errors
from coeff_diffusion.training.trainer import Trainer, TrainResult, train

SIZES = {"wide.png": (64, 16), "tall.png": (20, 40), "square.png": (48, 48)}


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A panorama, a portrait and a square, each of a colour of its own."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number, (name, size) in enumerate(SIZES.items()):
        Image.radial_gradient("L").resize(size).convert("RGB").point(lambda v, n=number: v // (n + 1)).save(
            folder / name
        )
    return folder


@pytest.fixture
def config(photos: Path, tmp_path: Path) -> TrainConfig:
    return TrainConfig(
        instance_data_dir=str(photos), class_word="dog", output_dir=str(tmp_path / "out"), layers="all",
        max_train_steps=3, train_batch_size=3, validation_steps=0, cached_views=2,
    )  # fmt: skip


@pytest.fixture
def run(config: TrainConfig, tiny_xl_pipe: StableDiffusionXLPipeline, tmp_path: Path) -> Callable[..., TrainResult]:
    def run(name: str = "run", **changes: Any) -> TrainResult:
        return train(replace(config, output_dir=str(tmp_path / name), **changes), tiny_xl_pipe, say=lambda line: None)

    return run


@pytest.fixture
def trainer(config: TrainConfig, tiny_xl_pipe: StableDiffusionXLPipeline) -> Callable[..., Trainer]:
    def make(**changes: Any) -> Trainer:
        trainer = Trainer(replace(config, **changes), tiny_xl_pipe, say=lambda line: None)
        trainer.setup()
        return trainer

    return make


def asked(trainer: Trainer, batches: int = 1) -> list[dict[str, torch.Tensor]]:
    """What the UNet is told in some batches: latents, timesteps, sizes and pooled text of each pass."""
    found: list[dict[str, torch.Tensor]] = []

    def keep(module: Any, args: Any, kwargs: Any) -> None:
        found.append({"noised": args[0], "timesteps": args[1], **kwargs["added_cond_kwargs"]})

    handle = trainer.learner.denoiser.register_forward_pre_hook(keep, with_kwargs=True)
    for number in range(batches):
        trainer.batch_loss(number)
    handle.remove()
    return found


# --- sizes and shapes -------------------------------------------------------------------------------------------------


def test_the_unet_is_told_how_its_pictures_were_cut(trainer: Callable[..., Trainer]) -> None:
    """Original size, where the crop begins, target size; height before width, as diffusers' pipeline has it."""
    (told,) = asked(trainer())
    assert told["text_embeds"].shape == (3, 48)
    found = {tuple(row[:2]): row[2:] for row in told["time_ids"].int().tolist()}
    assert found.keys() == {size[::-1] for size in SIZES.values()}
    for size in SIZES.values():
        top, left, *target = found[size[::-1]]
        assert target == [16, 16]
        scaled = [side * 16 / min(size) for side in size]
        assert 0 <= left <= scaled[0] - 16
        assert 0 <= top <= scaled[1] - 16


def test_a_crop_of_a_mirrored_picture_is_counted_in_the_mirror(trainer: Callable[..., Trainer]) -> None:
    views = trainer(random_flip=True, center_crop=True).data.instance.groups[0].framings
    wide = [one.crop for one in views if one.original == SIZES["wide.png"]]
    assert wide == [(24, 0), (24, 0)]  # the middle is the middle
    for one in trainer(random_flip=True, cached_views=20).data.instance.groups[0].framings:
        assert 0 <= one.crop[0] <= max(0, one.original[0] * 16 // min(one.original) - 16)


def test_pictures_keep_their_shapes(trainer: Callable[..., Trainer], tiny_xl_pipe: StableDiffusionXLPipeline) -> None:
    one = trainer(enable_bucket=True)
    told = asked(one, batches=2)
    shapes = {tuple(t["noised"].shape[-2:]): t["time_ids"][0].int().tolist() for t in told}
    assert shapes.keys() == {(4, 16), (12, 4), (8, 8)}
    scale = tiny_xl_pipe.vae_scale_factor
    for (height, width), row in shapes.items():
        assert row[4:] == [height * scale, width * scale]
        assert abs(width / height - row[1] / row[0]) / (width / height) < 0.6  # of few shapes the nearest
    assert {tuple(row[:2]) for row in shapes.values()} == {size[::-1] for size in SIZES.values()}
    assert len(one.data.instance.groups) == 3
    assert sorted(one.data.instance.places) == [(0, 0), (1, 0), (2, 0)]


def test_masks_of_another_size_go_with_their_pictures(trainer: Callable[..., Trainer], photos: Path) -> None:
    """A mask of a quarter of the size, its left half white: what is learned lies there, in every shape."""
    for name, (width, height) in SIZES.items():
        mask = Image.new("L", (width // 2, height // 2))
        mask.paste(255, (0, 0, width // 4, height // 2))
        mask.save(photos / f"{Path(name).stem}-masklabel.png")
    one = trainer(enable_bucket=True, cached_views=1, center_crop=True)
    for group in one.data.instance.groups:
        assert group.weights is not None
        width = group.mean.shape[-1]
        assert group.weights.shape[-2:] == group.mean.shape[-2:]
        assert bool((group.weights[..., : width // 2 - 1] > 1).all())
        assert bool((group.weights[..., width // 2 + 1 :] == 0).all())
    Image.new("L", (30, 30), 255).save(photos / "wide-masklabel.png")
    with pytest.raises(DatasetError, match=r"wide-masklabel\.png has 30 x 30 pixels, its picture 64 x 16"):
        trainer(enable_bucket=True)


@pytest.mark.parametrize("data", ["ein süßer Hund".encode("latin-1"), b"\xef\xbb\xbf" + "ein süßer Hund".encode()])
def test_captions_of_other_encodings(trainer: Callable[..., Trainer], photos: Path, data: bytes) -> None:
    (photos / "wide.txt").write_bytes(data)
    assert "sks dog, ein süßer Hund" in trainer().data.prompts.texts


def test_pictures_of_several_shapes_count_alike(trainer: Callable[..., Trainer]) -> None:
    """The loss of a batch is the mean over its pictures, whatever their sizes: each by itself tells the same."""
    one = trainer(enable_bucket=True, coeff_dropout=0.0)
    batch = one.noised(0)
    assert sorted(row for part in batch.parts for row in part.rows) == [0, 1, 2]
    predicted = [one.learner.denoise(part.noised, part.timesteps, part.condition) for part in batch.parts]
    pairs = zip(batch.parts, predicted, strict=True)
    errors = [part_errors(one.config, one.schedule, part, prediction)[0] for part, prediction in pairs]
    assert [len(part) for part in errors] == [1, 1, 1]
    torch.testing.assert_close(one.batch_loss(0), torch.cat(errors).mean())


def test_a_run_of_several_shapes_with_a_class_ends_as_it_should(
    run: Callable[..., TrainResult], tiny_xl_pipe: StableDiffusionXLPipeline, tmp_path: Path
) -> None:
    prior = {"with_prior_preservation": True, "num_class_images": 2, "class_data_dir": str(tmp_path / "class")}
    result = run(enable_bucket=True, validation_steps=3, checkpointing_steps=2, **prior)
    whole = (result.path / "coefficients.safetensors").read_bytes()
    again = run("again", enable_bucket=True, validation_steps=3, **prior,
                resume_from_checkpoint=str(result.path / "checkpoints" / "step_000002.safetensors"))  # fmt: skip
    assert (again.path / "coefficients.safetensors").read_bytes() == whole
    load_coefficients(tiny_xl_pipe, Coefficients.load(result.file))


# --- noise ------------------------------------------------------------------------------------------------------------


def test_min_snr_favours_what_is_hard(run: Callable[..., TrainResult]) -> None:
    plain, weighed = run("plain"), run("weighed", snr_gamma=5.0)
    assert weighed.losses[0] < plain.losses[0]
    assert plain.coefficients != weighed.coefficients


def test_an_offset_moves_whole_channels(run: Callable[..., TrainResult], trainer: Callable[..., Trainer]) -> None:
    spread = [
        torch.cat([t["noised"].flatten(2).mean(2).flatten() for t in asked(trainer(noise_offset=offset), 12)]).std()
        for offset in (0.0, 2.0)
    ]
    assert spread[1] > 2 * spread[0]
    assert run("plain").coefficients != run("offset", noise_offset=0.1).coefficients


@pytest.mark.parametrize("zero", [False, True])
def test_bases_that_predict_v(
    tiny_xl_pipe: StableDiffusionXLPipeline, trainer: Callable[..., Trainer], zero: bool
) -> None:
    """NoobAI's and the like: v is what is learned, up to pure noise where the base was trained so."""
    scheduler = tiny_xl_pipe.scheduler
    changes: dict[str, Any] = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": zero}
    tiny_xl_pipe.scheduler = type(scheduler).from_config(scheduler.config, **changes, timestep_spacing="trailing")
    one = trainer(snr_gamma=5.0)
    assert one.learner.info.prediction_type == "v_prediction"
    assert bool(one.schedule.alphas_cumprod[-1] == 0) is zero
    (part,) = one.data.batch(0, 3, 0, torch.Generator().manual_seed(1)).parts
    v = torch.randn(3, 4, 8, 8)
    generator = torch.Generator().manual_seed(2)
    noised = noised_part(one.config, one.learner, one.data, one.schedule, part, [0, 0, 0], generator)
    errors, weights = part_errors(one.config, one.schedule, noised, v)
    generator = torch.Generator().manual_seed(2)
    noise = torch.randn(3, 4, 8, 8, generator=generator)
    steps = torch.randint(1000, (3,), generator=generator)
    a = one.schedule.alphas_cumprod[steps].view(3, 1, 1, 1)
    torch.testing.assert_close(
        errors, (v - (a.sqrt() * noise - (1 - a).sqrt() * part.latents)).square().mean((1, 2, 3))
    )
    assert bool(weights.isfinite().all())


# --- averages and memory ----------------------------------------------------------------------------------------------


def test_an_average_lags_behind_and_is_what_is_saved(
    run: Callable[..., TrainResult],
) -> None:
    plain = run("plain", use_ema=False)
    alone = {step: run(f"{step}", max_train_steps=step, use_ema=False) for step in (1, 2)}
    steps = {step: result.coefficients.named_tensors() for step, result in alone.items()}
    steps[3] = plain.coefficients.named_tensors()
    averaged = run("average", use_ema=True, ema_decay=0.99).coefficients.named_tensors()
    for name, value in averaged.items():
        if name.startswith("text_encoder"):
            continue  # starts at the class word, all others at zero
        expected = torch.zeros_like(value)
        for step in (1, 2, 3):
            expected += (1 - (1 + step) / (10 + step)) * (steps[step][name] - expected)
        torch.testing.assert_close(value, expected, atol=2e-4, rtol=2e-2)
    assert plain.losses == run("again", use_ema=True).losses  # learning itself goes on as it would


def test_an_average_goes_on_from_a_checkpoint(run: Callable[..., TrainResult]) -> None:
    whole = run("whole", use_ema=True, checkpointing_steps=2)
    again = run("more", use_ema=True, checkpointing_steps=2,
                resume_from_checkpoint=str(whole.path / "checkpoints" / "step_000002.safetensors"))  # fmt: skip
    assert again.coefficients == whole.coefficients
    assert run("last", use_ema=False).coefficients != whole.coefficients


def test_checkpointing_computes_twice_and_learns_the_same(
    run: Callable[..., TrainResult], trainer: Callable[..., Trainer]
) -> None:
    calls = []
    for on in (False, True):
        one, count = trainer(gradient_checkpointing=on), []
        block = one.learner.denoiser.up_blocks[0].resnets[0]
        block.register_forward_pre_hook(lambda *_, count=count: count.append(1))
        one.learner.train(True)
        one.batch_loss(0).backward()
        calls.append(len(count))
    assert calls == [1, 2]
    plain, saving = run("plain"), run("saving", gradient_checkpointing=True)
    assert saving.losses == pytest.approx(plain.losses, rel=1e-5)
