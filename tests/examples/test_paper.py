"""The paper's experiments as very short runs: what has to be true of them however little is trained."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import classification
import language
import letters
import pytest
import runs
import torch
import toy
import tuning
from torch import Tensor

from coeff_diffusion.method.attachment import acting_coeffs

# --- toy --------------------------------------------------------------------------------------------------------------


def test_only_coefficients_leave_the_hull(tmp_path: Path) -> None:
    settings = toy.Settings(steps=120)
    found = {way: toy.fitted(way, settings) for way in toy.WAYS}
    beyond = {way: toy.figures(one)[1] for way, one in found.items()}
    distance = {way: toy.figures(one)[0] for way, one in found.items()}
    assert beyond["nothing"] < 1e-6
    assert beyond["query, key"] < 1e-6
    assert beyond["both"] > 0.1
    assert distance["both"] < distance["query, key"] < distance["nothing"]
    assert bool((toy.outside(found["nothing"]["targets"], found["nothing"]["values"]) > 0.05).all())
    toy.draw(found, tmp_path / "toy.svg")
    first = (tmp_path / "toy.svg").read_bytes()
    toy.draw(found, tmp_path / "toy.svg")
    assert (tmp_path / "toy.svg").read_bytes() == first


def test_distance_from_a_hull() -> None:
    square = torch.tensor([[[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]]])
    points = torch.tensor([[[0.5, 0.5], [1.0, 1.0], [0.5, 3.0], [-3.0, -4.0]]])
    torch.testing.assert_close(toy.outside(points, square), torch.tensor([[0.0, 0.0, 2.0, 5.0]]), rtol=0, atol=1e-4)


# --- what the comparisons share ---------------------------------------------------------------------------------------


def test_a_search_climbs_and_takes_the_lower_of_equal_rates() -> None:
    tried: list[float] = []

    def peak(rate: float) -> float:
        tried.append(rate)
        return -abs(rate - 0.1)

    assert runs.best_rate(peak, 0.01, most=9) == 0.1
    assert sorted(tried) == [0.0032, 0.01, 0.032, 0.1, 0.32]
    assert runs.best_rate(lambda rate: 1.0, 0.01, most=3) == pytest.approx(0.001)


def test_a_join_takes_the_rate_that_is_best_for_the_adapter_alone() -> None:
    def score(method: str, adapter_rate: float, rate: float) -> float:
        return -abs(adapter_rate - 0.03) - abs(rate - (0.1 if method == "lora+coefficients" else 0))

    def search(score: Callable[[float], float], start: float) -> float:
        return max((0.01, 0.03, 0.1), key=score)

    assert tuning.best_rates("lora+coefficients", score, search) == (0.03, 0.1)
    assert tuning.best_rates("lora", score, search) == (0.03, 0.0)


def test_results_are_read_again(tmp_path: Path) -> None:
    first = runs.Results(tmp_path / "runs.jsonl").get(lambda: {"test": 1.5}, method="a", seed=0)
    again = runs.Results(tmp_path / "runs.jsonl")
    assert again.get(lambda: {"test": 0.0}, seed=0, method="a") == first == {"test": 1.5}
    assert again.get(lambda: {"test": 2.0}, seed=1, method="a") == {"test": 2.0}


@pytest.mark.parametrize("start", tuning.STARTS)
def test_starts(start: tuning.Start) -> None:
    """Identity and residual are the same model at first; without dropout they learn the same, random is another."""
    torch.manual_seed(0)
    model = letters.network(3)
    pictures = torch.rand(2, 1, letters.SIDE, letters.SIDE)
    with torch.no_grad():
        base = model.eval()(pixel_values=pictures).logits
    learner = tuning.Learner(model, letters.sites(model), None, True, dropout=0.5, start=start)
    learner.ready(training=False)
    with torch.no_grad():
        assert torch.allclose(model(pixel_values=pictures).logits, base, atol=1e-5) == (start != "random")
    learner.ready(training=True)
    first, second = (model(pixel_values=pictures).logits for _ in range(2) if not learner.ready(training=True))
    # A residual of zero has nothing to drop; the others lose half of what mixes the maps.
    assert torch.allclose(first, second, atol=1e-6) == (start == "residual")
    (weight, *_) = learner.coeffs.values()
    second.sum().backward()
    assert weight.grad is not None
    assert len(acting_coeffs(model)) == 4


# --- comparisons ------------------------------------------------------------------------------------------------------


def quick(module: Any, folder: Path) -> Any:
    settings = module.Settings(seeds=1, steps=3, pretrain_steps=2, output_dir=str(folder))
    comparison = module.Comparison(settings)
    comparison.search = runs.first_rate
    return comparison


def test_few_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(letters, "letters", lambda count, seed: _blank(min(count, 64)))
    comparison = quick(classification, tmp_path)
    table = comparison.methods(["probe", "coefficients", "lora", "lora+coefficients"])
    values = [row.split(" | ")[1] for row in table.splitlines()[2:]]
    assert values == ["0", "256", "4,096", "4,352"]
    labelled = comparison.labelled(0)
    assert len(labelled.unique()) == classification.PER_CLASS * classification.CLASSES
    assert int(labelled.max()) < classification.POOL
    assert not torch.equal(labelled, comparison.labelled(1))
    run = replace(comparison.chosen("coefficients"), blocks=("1",))
    assert comparison.result(run)["values"] == 64
    before = (tmp_path / "classification.jsonl").read_bytes()
    assert quick(classification, tmp_path).result(run)["values"] == 64
    assert (tmp_path / "classification.jsonl").read_bytes() == before  # nothing is run again


def _blank(count: int) -> tuple[Tensor, Tensor]:
    return torch.rand(count, 1, letters.SIDE, letters.SIDE), torch.zeros(count, dtype=torch.long)


def test_pictures() -> None:
    pictures, labels = letters.digits()
    assert (len(pictures), pictures.min(), pictures.max(), labels.bincount().min()) == (1797, 0, 1, 174)
    drawn, names = letters.letters(40, seed=1)
    assert drawn.shape[1:] == pictures.shape[1:]
    assert bool((drawn.amax((1, 2, 3)) > 0.5).all())  # none is blank
    assert torch.equal(drawn, letters.letters(40, seed=1)[0])
    assert not set(letters.LETTERS) & set("0123456789OolI")
    assert int(names.max()) < len(letters.LETTERS)


def test_language(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(language, "NAMES", ("coefficients", "ln"))
    comparison = quick(language, tmp_path)
    table = comparison.table()
    assert [row.split(" | ")[1] for row in table.splitlines()[2:]] == ["0", "256", "576"]
    nothing = comparison.result(language.Run("nothing"))
    untouched = comparison.result(language.Run("coefficients", rate=0.0))
    assert untouched["test"] == nothing["test"]  # zero is the model, bitwise
    text = language.code()
    letters_of = "".join(language.LETTERS[number] for number in text[:4000])
    assert "import " in letters_of
