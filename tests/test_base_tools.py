"""tools/base: the recipe of the embedded base, on sprites made here."""

import io
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

TOOLS = Path(__file__).parents[1] / "tools" / "base"


@pytest.fixture(autouse=True)
def _tools_importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(TOOLS))


@pytest.fixture(scope="module")
def sprites(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An archive as `fetch.py` makes it, with a coloured disc for every concept (two poses for the first)."""
    sys.path.insert(0, str(TOOLS))
    from concepts import HELD_OUT, training_concepts

    sys.path.remove(str(TOOLS))
    path = tmp_path_factory.mktemp("sprites") / "sprites.zip"
    concepts = [(name, word, False) for name, word, _ in training_concepts()]
    concepts += [(name, word, True) for name, (word, _) in HELD_OUT.items()]
    index = []
    with zipfile.ZipFile(path, "w") as archive:
        for number, (name, word, held_out) in enumerate(concepts):
            for pose in range(2 if number == 0 else 1):
                picture = Image.new("RGBA", (144, 144))
                colour = (number * 37 % 256, number * 59 % 256, number * 83 % 256)
                ImageDraw.Draw(picture).ellipse((20, 20, 124, 124), fill=colour)
                buffer = io.BytesIO()
                picture.save(buffer, "WEBP", lossless=True)
                file = f"{number}-{pose}.webp"
                archive.writestr(file, buffer.getvalue())
                index.append({"file": file, "name": name, "class": word, "frame": pose, "held_out": held_out})
        archive.writestr("index.json", json.dumps(index))
    return path


def test_held_out_concepts_are_absent() -> None:
    from concepts import CONCEPTS, HELD_OUT, HELD_OUT_TWINS, training_concepts

    trained = training_concepts()
    assert {name for name, *_ in trained}.isdisjoint(HELD_OUT)
    assert {emoji for *_, emoji in trained}.isdisjoint([emoji for _, emoji in HELD_OUT.values()])
    assert {emoji for *_, emoji in trained}.isdisjoint(HELD_OUT_TWINS)
    assert {word for word, _ in HELD_OUT.values()} <= set(CONCEPTS), "a held-out concept's class has to be known"


def test_there_is_enough_to_learn() -> None:
    from concepts import COLOURS, CONCEPTS, training_concepts

    names = [name for name, *_ in training_concepts()]
    assert len(names) == len(set(names)) >= 100
    assert sum(len(members) >= 3 for members in CONCEPTS.values()) >= 10
    assert len(COLOURS) == 12


def test_training_sees_no_sprite_of_a_held_out_concept(sprites: Path) -> None:
    from concepts import HELD_OUT
    from render import Renderer

    catalogue = Renderer(sprites, scene_variants=1).catalogue
    assert set(catalogue.names).isdisjoint(HELD_OUT)


def test_every_scene_can_be_painted_and_is_the_same_again() -> None:
    from concepts import SCENES
    from scenes import PAINTERS, paint_scenes

    assert tuple(PAINTERS) == SCENES
    for scene in SCENES:
        first, second = (paint_scenes(scene, 1, 32, seed=3) for _ in range(2))
        assert first.shape == (1, 3, 32, 32)
        assert np.array_equal(first, second)
        assert first.std() > 5, f"{scene} is one flat colour"


def test_captions_say_what_is_drawn(sprites: Path) -> None:
    from concepts import COLOURS, SCENES
    from recipes import PLAIN, SCENE, RecipeBook
    from render import Renderer

    book = RecipeBook(Renderer(sprites, scene_variants=1).catalogue, class_words=0, caption_dropout=0)
    recipes, captions = book.draw(np.random.default_rng(0), 200)
    for row, caption in enumerate(captions):
        for label in recipes.label[row].tolist():
            assert label < 0 or book.catalogue.names[label] in caption
        if recipes.background[row] == PLAIN:
            colour = (recipes.colours[row, 0].numpy() * 255).round()
            nearest = min(COLOURS, key=lambda name: float(np.square(np.array(COLOURS[name]) - colour).sum()))
            assert caption.endswith(f"{nearest} background")
        elif recipes.background[row] == SCENE:
            assert caption.endswith(SCENES[int(recipes.scene[row])])
        assert ("next to" in caption or " and " in caption.split(" on ")[0]) or recipes.sprite[row, 1] < 0


def test_objects_are_drawn_where_and_as_large_as_the_recipe_says(sprites: Path) -> None:
    from recipes import RecipeBook
    from render import Renderer

    renderer = Renderer(sprites, scene_variants=1)
    recipes, _ = RecipeBook(renderer.catalogue).draw(np.random.default_rng(1), 2)
    recipes.background.zero_()
    recipes.colours.fill_(1.0)
    recipes.sprite[:] = torch.tensor([[2, -1], [2, -1]])
    recipes.scale[:, 0] = torch.tensor([0.4, 0.8])
    recipes.place[:, 0] = torch.tensor([[0.25, 0.5], [0.5, 0.5]])
    recipes.tint.fill_(-1)
    covered = renderer(recipes).mean(1) < 0.9  # [2, 128, 128]
    for row, (x, size) in enumerate(((0.25, 0.4), (0.5, 0.8))):
        columns = covered[row].any(0).nonzero()[:, 0].float()
        assert columns.mean().item() / 128 == pytest.approx(x, abs=0.02)
        # the disc fills 104 of the sprite's 144 pixels
        assert (columns.max() - columns.min()).item() / 128 == pytest.approx(size * 104 / 144, abs=0.03)


def test_tinted_objects_take_the_colour_and_keep_their_shading() -> None:
    from render import Renderer

    shades = torch.linspace(0.1, 0.9, 8).view(1, 1, 1, 8).expand(1, 3, 1, 8)
    red = Renderer.tinted(shades, torch.tensor([[0.84, 0.16, 0.16]]))[0, :, 0]
    assert bool((red[0] > red[1]).all())
    assert bool((red.sum(0).diff() > 0).all())
    assert torch.equal(Renderer.tinted(shades, torch.full((1, 3), -1.0)), shades)


def test_the_encoder_computes_the_linear_code() -> None:
    from components import LATENT_CHANNELS, make_autoencoder
    from linear_code import patches, write_encoder

    generator = torch.Generator().manual_seed(0)
    weight, mean = torch.randn(LATENT_CHANNELS, 192, generator=generator), torch.randn(192, generator=generator) * 0.1
    vae = make_autoencoder()
    write_encoder(vae, weight, mean)
    pictures = torch.rand(2, 3, 32, 32, generator=generator) * 2 - 1
    expected = ((patches(pictures) - mean) @ weight.T).view(2, 4, 4, LATENT_CHANNELS).permute(0, 3, 1, 2)
    torch.testing.assert_close(vae.encode(pictures).latents, expected, atol=1e-4, rtol=1e-4)


def test_the_code_keeps_the_directions_of_largest_variance(sprites: Path) -> None:
    from linear_code import fit, patches
    from recipes import RecipeBook
    from render import Renderer

    renderer = Renderer(sprites, scene_variants=1)
    weight, mean = fit(renderer, 16, seed=0, batches=2)
    found = patches(renderer(RecipeBook(renderer.catalogue).draw(np.random.default_rng(5), 32)[0])) - mean
    decoded = found @ weight.T @ torch.linalg.pinv(weight).T
    assert (decoded - found).square().mean() < 0.03 * found.square().mean()


def test_the_tokenizer_takes_any_text(tmp_path: Path) -> None:
    from components import PROMPT_LENGTH, train_tokenizer

    tokenizer = train_tokenizer(["a dog on grass", "a dog in the snow"] * 50, tmp_path)
    assert tokenizer.tokenize("a dog") == ["a</w>", "dog</w>"]
    ids = tokenizer("sks xyzzy 狗 <b>", padding="max_length").input_ids
    assert len(ids) == PROMPT_LENGTH
    assert tokenizer.unk_token_id not in tokenizer("sks xyzzy 狗", add_special_tokens=False).input_ids


def test_loss_weights_cap_the_signal_and_keep_pure_noise() -> None:
    from train_diffusion import weighted_loss

    snr = torch.tensor([0.0, 5.0, 500.0])
    errors = [
        float(weighted_loss(torch.ones(1, 1, 2, 2), torch.zeros(1, 1, 2, 2), snr[i : i + 1], gamma=5)) for i in range(3)
    ]
    assert errors == pytest.approx([1.0, 1.0, 6 / 501])


@pytest.mark.slow
def test_a_killed_run_goes_on_exactly(sprites: Path, tmp_path: Path) -> None:
    def losses(folder: Path, *stops: int) -> list[float]:
        for stop in stops:
            command = [sys.executable, TOOLS / "train_autoencoder.py", "--sprites", sprites, "--output", folder]
            options = {"--max_train_steps": 4, "--stop_after": stop, "--train_batch_size": 2, "--workers": 0}
            options |= {"--fit_batches": 1, "--scene_variants": 1}
            command += [str(part) for pair in options.items() for part in pair]
            subprocess.run([str(part) for part in command], check=True, capture_output=True, timeout=280)
        lines = [json.loads(line) for line in (folder / "losses.jsonl").read_text().splitlines()]
        return [line["pixels"] for line in lines]

    whole, resumed = losses(tmp_path / "whole", 4), losses(tmp_path / "resumed", 2, 4)
    assert len(whole) == 4
    assert whole == resumed
