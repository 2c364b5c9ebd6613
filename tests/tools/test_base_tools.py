"""tools/base: the recipe of the embedded base, on sprites made here."""

import importlib
import io
import json
import sys
import zipfile
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

TOOLS = Path(__file__).parents[2] / "tools" / "base"
BASE = Path(__file__).parents[2] / "coeff_diffusion" / "base" / "model"


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


def test_easy_pictures_show_one_upright_object_in_the_middle_of_a_plain_ground(sprites: Path) -> None:
    from recipes import PLAIN, RecipeBook
    from render import Renderer

    book = RecipeBook(Renderer(sprites, scene_variants=1).catalogue, class_words=0, caption_dropout=0)
    easy, captions = book.draw(np.random.default_rng(0), 100, easy_share=1.0)
    assert bool((easy.background == PLAIN).all())
    assert bool((easy.sprite[:, 1] < 0).all())
    assert bool((easy.rotation == 0).all())
    assert bool((easy.mirror == 1).all())
    assert bool((easy.tint < 0).all())
    assert bool(((easy.place[:, 0] - 0.5).abs() <= 0.05).all())
    assert {int(s) for s in easy.sprite[:, 0]} <= {poses[0] for poses in book.catalogue.sprites}
    assert all(caption.endswith(" background") and "gradient" not in caption for caption in captions)
    mixed, _ = book.draw(np.random.default_rng(0), 400, easy_share=0.5)
    assert 0.6 < float((mixed.background == PLAIN).float().mean()) < 0.9  # a half of all, and a half of the rest


def test_the_curriculum_fades_and_then_stays() -> None:
    from train_diffusion import Fade, FadeOfBatches, draw_timesteps, learning_rate_factor

    fade = Fade(0.8, 0.2, 0.5)
    assert [fade(done) for done in (0, 0.25, 0.5, 1)] == pytest.approx([0.8, 0.5, 0.2, 0.2])
    assert FadeOfBatches(fade, 100)(25) == pytest.approx(0.5)
    assert [learning_rate_factor(step, step / 100, 10, 0.4) for step in (0, 30, 60, 80)] == pytest.approx(
        [0.1, 1, 1, 0.5]
    )
    generator = torch.Generator().manual_seed(0)
    even, high = (draw_timesteps(4000, 1000, share, generator) for share in (0.0, 0.5))
    assert (int(even.min()), int(even.max())) == (0, 999)
    assert float((even >= 600).float().mean()) == pytest.approx(0.4, abs=0.03)
    assert float((high >= 600).float().mean()) == pytest.approx(0.7, abs=0.03)


def small_network() -> torch.nn.Module:
    torch.manual_seed(0)
    network = torch.nn.Sequential()
    network.add_module("conv_in", torch.nn.Conv2d(3, 8, 3, padding=1))
    network.add_module("hidden", torch.nn.Conv2d(8, 8, 3, padding=1))
    network.add_module("pointwise", torch.nn.Conv2d(8, 4, 1))
    return network.to(memory_format=torch.channels_last)


def test_muon_trains_the_hidden_matrices_in_place_and_resumes_exactly() -> None:
    from optimizers import MuonAdamW

    def train(network: torch.nn.Module, optimizer: MuonAdamW, steps: range) -> None:
        for step in steps:
            batch = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(step))
            network(batch).square().mean().backward()
            optimizer.step(0.5)
            assert all(p.grad is None for p in network.parameters())

    whole = small_network()
    before = {name: p.detach().clone() for name, p in whole.named_parameters()}
    optimizer = MuonAdamW(whole, 1e-3, 1e-2, 0.0)
    assert len(optimizer.optimizers["muon"].param_groups[0]["params"]) == 2, "the first layer is AdamW's"
    train(whole, optimizer, range(4))
    assert all(not torch.equal(p, before[name]) for name, p in whole.named_parameters())

    first = small_network()
    halfway = MuonAdamW(first, 1e-3, 1e-2, 0.0)
    train(first, halfway, range(2))
    second = small_network()
    second.load_state_dict(first.state_dict())
    resumed = MuonAdamW(second, 1e-3, 1e-2, 0.0)
    resumed.load_state_dict(halfway.state_dict())
    train(second, resumed, range(2, 4))
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), second.parameters(), strict=True))


def test_muon_steps_as_torchs_does_but_several_matrices_at_once() -> None:
    from optimizers import Muon, as_matrix, from_matrix, orthogonal

    generator = torch.Generator().manual_seed(0)
    weights = [torch.nn.Parameter(torch.randn(8, 4, 3, 3, generator=generator)) for _ in range(3)]
    before = [weight.detach().clone() for weight in weights]
    matrices = [torch.nn.Parameter(as_matrix(weight.detach()).clone()) for weight in weights]
    for weight, matrix in zip(weights, matrices, strict=True):
        weight.grad = torch.randn(weight.shape, generator=generator)
        matrix.grad = as_matrix(weight.grad).clone()
        assert torch.equal(from_matrix(as_matrix(weight.detach()), weight), weight)
    torch.optim.Muon(matrices, lr=1e-2, weight_decay=0.1, adjust_lr_fn="match_rms_adamw").step()
    Muon(weights, lr=1e-2, weight_decay=0.1).step()
    for weight, matrix, start in zip(weights, matrices, before, strict=True):
        ours, theirs = as_matrix((weight - start).detach()), matrix.detach() - as_matrix(start)
        assert torch.nn.functional.cosine_similarity(ours.flatten(), theirs.flatten(), dim=0) > 0.999
        torch.testing.assert_close(ours, theirs, atol=5e-4, rtol=0.02)
    singular = torch.linalg.svdvals(orthogonal(torch.randn(2, 9, 40, generator=generator)))
    assert bool(((singular > 0.6) & (singular < 1.3)).all())


def test_a_pool_grows_and_gives_what_was_rendered(sprites: Path) -> None:
    from diffusers import AutoencoderTiny
    from pool import LatentPool, encode
    from recipes import RecipeBatches, RecipeBook
    from render import Renderer
    from transformers import CLIPTokenizer

    renderer = Renderer(sprites, scene_variants=1)
    vae, tokenizer = AutoencoderTiny.from_pretrained(BASE / "vae"), CLIPTokenizer.from_pretrained(BASE / "tokenizer")

    def batches() -> RecipeBatches:
        return RecipeBatches(RecipeBook(renderer.catalogue), tokenizer, 4, seed=3)

    pool = LatentPool(renderer, vae, iter(batches()), size=6)
    assert [pool.grow(), pool.count, pool.grow(), pool.count, pool.grow()] == [True, 4, True, 6, False]
    recipes, tokens = next(iter(batches()))
    expected = encode(vae, renderer(recipes))
    latents, drawn = pool.draw(64, torch.Generator().manual_seed(0))
    rows = [row for row in range(4) if bool((latents - expected[row]).abs().amax((1, 2, 3)).lt(0.05).any())]
    assert rows == [0, 1, 2, 3]
    for row in rows:
        same = (latents - expected[row]).abs().amax((1, 2, 3)).lt(0.05)
        assert bool((drawn[same] == tokens[row]).all())


def test_parameters_without_a_gradient_stop_the_training() -> None:
    from train_diffusion import check_gradients

    network = small_network()
    network(torch.randn(1, 3, 8, 8)).square().mean().backward()
    check_gradients(network)
    network.hidden.weight.grad.zero_()
    with pytest.raises(RuntimeError, match=r"1 parameters get no gradient: hidden.weight"):
        check_gradients(network)


def losses(stage: str, folder: Path, sprites: Path, options: dict[str, object], *stops: int) -> list[float]:
    """Run a stage with a stop after each of some steps, going on from there; the loss of every step."""
    for stop in stops:
        common = {"--max_train_steps": 2, "--stop_after": stop, "--train_batch_size": 2, "--workers": 0}
        flags = {"--sprites": sprites, "--output": folder, **common, **options}
        with patch.object(sys, "argv", [stage, *(str(part) for pair in flags.items() for part in pair)]):
            importlib.import_module(stage).main()
    lines = [json.loads(line) for line in (folder / "losses.jsonl").read_text().splitlines()]
    return [line[next(key for key in ("loss", "pixels") if key in line)] for line in lines]


STAGES = {
    "train_autoencoder": {"--fit_batches": 1, "--scene_variants": 1},
    "train_diffusion": {"--vae": BASE / "vae", "--scene_variants": 1},
}


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_the_same_command_gives_the_same_losses_and_a_stopped_run_goes_on_exactly(
    stage: str, sprites: Path, tmp_path: Path
) -> None:
    whole = losses(stage, tmp_path / "whole", sprites, STAGES[stage], 2)
    resumed = losses(stage, tmp_path / "resumed", sprites, STAGES[stage], 1, 2)
    assert len(whole) == 2
    assert whole == resumed


@pytest.mark.slow
def test_a_run_follows_the_clock_and_goes_on_from_weights(sprites: Path, tmp_path: Path) -> None:
    options: dict[str, object] = {
        "--vae": BASE / "vae", "--init_from": BASE, "--pool_size": 16, "--pool_start": 8, "--max_train_minutes": 0.1,
        "--scene_variants": 1,
    }  # fmt: skip
    found = losses("train_diffusion", tmp_path, sprites, options, 10**6)
    assert found
    assert (tmp_path / "unet" / "diffusion_pytorch_model.safetensors").is_file()


def test_subjects_are_cut_out_and_put_on_other_grounds(
    sprites: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import make_subjects
    from concepts import HELD_OUT

    def made(*flags: str) -> Path:
        subjects = tmp_path / "-".join(["subjects", *flags])
        places = ["--subjects", str(subjects), "--unseen", str(tmp_path / "unseen"), "--sprites", str(sprites)]
        monkeypatch.setattr(sys, "argv", ["make_subjects.py", "--names", "snail", *places, *flags])
        make_subjects.main()
        return subjects / "snail"

    def pixels(path: Path) -> np.ndarray:
        return np.asarray(Image.open(path).convert("RGB"), dtype=np.int16)

    plain, masked, grounds = made(), made("--masks"), made("--grounds", "2")
    assert len(list((tmp_path / "unseen" / "snail").glob("*.png"))) == make_subjects.UNSEEN
    assert len(list(plain.glob("*.png"))) == 5
    assert len(list(grounds.glob("*.png"))) == len(list(grounds.glob("*.txt"))) == 15
    for number in range(5):
        name = f"{number:02d}"
        for other in (masked, grounds):
            assert (other / f"{name}.png").read_bytes() == (plain / f"{name}.png").read_bytes()
            assert (other / f"{name}.txt").read_text() == (plain / f"{name}.txt").read_text()
        mask = np.asarray(Image.open(masked / f"{name}-masklabel.png"))
        assert mask.shape == (128, 128)
        inside = mask == 255
        assert 0.1 < inside.mean() < 0.9
        first, moved = pixels(grounds / f"{name}.png"), pixels(grounds / f"{number + 5:02d}.png")
        assert np.abs(first - moved)[inside].max() <= 1, "the subject stays where and as it is"
        outside = mask == 0
        assert np.abs(first - moved)[outside].mean() > 5, "and stands before something else"
        assert (grounds / f"{name}.txt").read_text().startswith(f"a {HELD_OUT['snail'][0]} ")
