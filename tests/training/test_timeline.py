"""The subject of every Nth step in one file."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from coeff_diffusion.subject.coefficients import Coefficients
from coeff_diffusion.subject.errors import CoefficientsError
from coeff_diffusion.subject.info import CoefficientsInfo
from coeff_diffusion.training.timeline import load_losses, load_timeline, load_validation, save_timeline

PATH = "down_blocks.0.attentions.0.transformer_blocks.0.attn1"


def subject(step: int) -> Coefficients:
    generator = torch.Generator().manual_seed(step)
    info = CoefficientsInfo(trigger="sks dog", train_steps=step)
    return Coefficients(
        {PATH: torch.randn(4, 4, generator=generator), "mid_block.attn2": torch.randn(2, 2, generator=generator)},
        {"text_encoder": torch.randn(1, 8, generator=generator)},
        info,
    )


TIMELINE = {step: subject(step) for step in (10, 20, 100, 1_234_567)}


def test_round_trip(tmp_path: Path) -> None:
    save_timeline(tmp_path / "t.safetensors", TIMELINE, [0.5, 0.25, 1 / 3])
    found = load_timeline(tmp_path / "t.safetensors")
    assert list(found) == [10, 20, 100, 1_234_567]
    assert found == TIMELINE
    assert load_losses(tmp_path / "t.safetensors") == [0.5, 0.25, 0.333333]
    assert load_validation(tmp_path / "t.safetensors") == {}
    assert [path.name for path in tmp_path.iterdir()] == ["t.safetensors"]


def test_token_only_and_coefficients_only(tmp_path: Path) -> None:
    token = subject(1).replace(coeffs={})
    plain = subject(2).replace(tokens={})
    save_timeline(tmp_path / "t", {1: token, 2: plain})
    assert load_timeline(tmp_path / "t") == {1: token, 2: plain}


def test_the_same_steps_give_the_same_bytes(tmp_path: Path) -> None:
    written = set()
    for number in range(5):
        save_timeline(tmp_path / str(number), dict(reversed(TIMELINE.items())), [0.1])
        written.add((tmp_path / str(number)).read_bytes())
    assert len(written) == 1


def test_the_documented_format_is_enough_to_read_it(tmp_path: Path) -> None:
    save_timeline(tmp_path / "t", {10: subject(10)}, [0.5], {10: 0.25, 0: 0.5})
    with safe_open(tmp_path / "t", framework="pt") as file:
        metadata = file.metadata()
        assert sorted(file.keys()) == [
            "step_000010/text_encoder/token",
            f"step_000010/unet/{PATH}.coeff",
            "step_000010/unet/mid_block.attn2.coeff",
        ]
        assert torch.equal(file.get_tensor(f"step_000010/unet/{PATH}.coeff"), subject(10)[PATH])
    assert (metadata["format"], metadata["format_version"]) == ("coeff-diffusion-timeline", "1")
    assert json.loads(json.loads(metadata["infos"])["10"])["trigger"] == "sks dog"
    assert json.loads(metadata["losses"]) == [0.5]
    assert json.loads(metadata["validation_losses"]) == [[0, 0.5], [10, 0.25]]
    assert load_validation(tmp_path / "t") == {0: 0.5, 10: 0.25}


GOOD = {"format": "coeff-diffusion-timeline", "format_version": "1", "infos": '{"1": "{}"}', "losses": "[]"}
TENSORS = {"step_000001/unet/mid_block.attn1.coeff": torch.zeros(2, 2)}


@pytest.mark.parametrize(
    ("metadata", "tensors", "said"),
    [
        ({"format": "coeff-diffusion"}, {}, "is not a readable timeline: its format is 'coeff-diffusion'"),
        ({"format_version": "2"}, {}, "version is '2', expected '1'"),
        ({"infos": "{"}, {}, "its 'infos' is no JSON"),
        ({"infos": "[]"}, {}, "does not say where its steps came from"),
        ({"infos": '{"2": "{}"}'}, {}, "describes the steps 2 and holds the steps 1"),
        ({}, {"unet/x.coeff": torch.zeros(2, 2)}, "holds 'unet/x.coeff', expected step_<number>"),
        ({}, {"step_000001/x": torch.zeros(2, 2)}, "unexpected tensors 'x'; expected only unet"),
        ({}, {"step_000001/unet/a.coeff": torch.full((2, 2), torch.nan)}, "expected finite values"),
    ],
)
def test_damage(tmp_path: Path, metadata: dict[str, str], tensors: dict[str, torch.Tensor], said: str) -> None:
    save_file({**TENSORS, **tensors}, tmp_path / "t", metadata={**GOOD, **metadata})
    with pytest.raises(CoefficientsError, match=said):
        load_timeline(tmp_path / "t")


def test_not_a_file_of_ours(tmp_path: Path) -> None:
    (tmp_path / "pickle").write_bytes(b"\x80\x04K\x01.")
    for name in ("pickle", "missing"):
        with pytest.raises(CoefficientsError, match="is not a readable timeline"):
            load_timeline(tmp_path / name)
    save_file(TENSORS, tmp_path / "t", metadata={**GOOD, "losses": "{"})
    with pytest.raises(CoefficientsError, match="its 'losses' is no JSON"):
        load_losses(tmp_path / "t")
    for wrong in ("{}", "[1]", "[[1]]", "[[-1, 0.5]]", "[[1, null]]", "[[2, 0.5], [1, 0.5]]", "[[1, 0.5], [1, 0.5]]"):
        save_file(TENSORS, tmp_path / "t", metadata={**GOOD, "validation_losses": wrong})
        with pytest.raises(CoefficientsError, match="its validation losses"):
            load_validation(tmp_path / "t")
    save_timeline(tmp_path / "whole", TIMELINE)
    data = (tmp_path / "whole").read_bytes()
    (tmp_path / "cut").write_bytes(data[: len(data) // 2])
    with pytest.raises(CoefficientsError, match="is not a readable timeline"):
        load_timeline(tmp_path / "cut")


def test_infos_are_kept_step_by_step(tmp_path: Path) -> None:
    changed = {1: subject(1), 2: subject(2).replace(info=dataclasses.replace(subject(2).info, final_loss=0.5))}
    save_timeline(tmp_path / "t", changed)
    assert [found.info.final_loss for found in load_timeline(tmp_path / "t").values()] == [None, 0.5]
