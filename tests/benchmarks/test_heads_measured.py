"""The benchmark of heads on the tiny base: what the gradients say of a head is what switching it off does."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from diffusers import StableDiffusionPipeline
from heads import Head, Measure, chosen, heat_map, measured, report, rise

from coeff_diffusion import Coefficients, loaded_coefficients
from coeff_diffusion.subject.heads import without_head


@pytest.fixture
def measure(
    tiny_pipe: StableDiffusionPipeline, new_subject: Callable[..., Coefficients], subject_images: Path
) -> Measure:
    return Measure(tiny_pipe, new_subject(vectors=1).scaled(0.1), subject_images)


def test_estimates_are_what_switching_off_does(measure: Measure, tmp_path: Path) -> None:
    heads = measure.heads()
    assert len(heads) == sum(len(coeff) for coeff in measure.subject.values())
    assert loaded_coefficients(measure.pipe) == {}
    looked_at = chosen(heads, 2)
    file = tmp_path / "heads.jsonl"
    found = measured(measure, looked_at, file)
    for head in looked_at:
        assert rise(found, head.off)[0] == pytest.approx(
            head.receiver, rel=0.2, abs=2e-6
        )  # pictures are rounded to 1e-6
    # As a source: the same, of the column.
    best = max(heads, key=lambda head: head.source)
    rest = measure.losses(without_head(measure.subject, best.path, best.number, "column"))
    change = sum(rest) / len(rest) - sum(found["nothing"]["losses"]) / len(rest)
    assert change == pytest.approx(best.source, rel=0.2, abs=2e-6)
    # What is there is not measured again.
    lines = file.read_text().splitlines()
    assert [json.loads(line)["off"] for line in lines] == ["nothing", "all", *(head.off for head in looked_at)]
    assert measured(measure, looked_at, file) == found
    assert file.read_text().splitlines() == lines
    text = report(heads, looked_at, found)
    assert all(f"{head.title}, {head.number + 1}" in text for head in looked_at)
    assert heat_map(heads).width > 800


def test_heads_of_all_ranks_are_looked_at() -> None:
    heads = [Head("mid_block", number, "mid", 1.0, float(number), 0.0) for number in range(30)]
    assert [head.number for head in chosen(heads, 11)] == [*range(29, 21, -1), 21, 11, 0]
    assert len(set(chosen(heads, 30))) == len(chosen(heads, 99)) == 30
