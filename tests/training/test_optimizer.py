"""From losses to updates: separate rates, accumulation, clipping, float16."""

import math
from pathlib import Path

import pytest
import torch
from torch import nn

from coeff_diffusion.training.checkpoint import (
    Checkpoint,
    CheckpointError,
    checkpoints_of,
    find_checkpoint,
    prune_checkpoints,
)
from coeff_diffusion.training.config import TrainConfig
from coeff_diffusion.training.optimizer import Optimizer

CPU = torch.device("cpu")


def parts(seed: int = 0, **changes: object) -> tuple[nn.Parameter, nn.Parameter, Optimizer]:
    generator = torch.Generator().manual_seed(seed)
    coeff, token = (nn.Parameter(torch.randn(shape, generator=generator)) for shape in ((3, 3), (1, 5)))
    usual = {"token_learning_rate": 2e-2, "adam_weight_decay": 0.0, "max_train_steps": 10}
    config = TrainConfig(**{**usual, **changes})  # type: ignore[arg-type]
    assert config.token_learning_rate is not None
    groups = [([coeff], config.learning_rate), ([token], config.token_learning_rate), ([], 1.0)]
    return coeff, token, Optimizer(groups, config, CPU)


def test_each_kind_has_its_rate() -> None:
    coeff, token, optimization = parts(learning_rate=1e-2, token_learning_rate=1e-4)
    before = coeff.detach().clone(), token.detach().clone()
    optimization.update([lambda: coeff.sum() + token.sum()])
    torch.testing.assert_close(before[0] - coeff, torch.full((3, 3), 1e-2), rtol=1e-3, atol=0)
    torch.testing.assert_close(before[1] - token, torch.full((1, 5), 1e-4), rtol=1e-3, atol=0)
    assert optimization.learning_rates == [1e-2, 1e-4]


def test_several_batches_are_one_large_one() -> None:
    data = torch.randn(8, 3, generator=torch.Generator().manual_seed(1))

    def loss(coeff: nn.Parameter, rows: slice) -> torch.Tensor:
        return (data[rows] @ coeff).square().mean()

    one, _, large = parts()
    two, _, small = parts()
    for _ in range(3):
        found = large.update([lambda: loss(one, slice(0, 8))])
        assert small.update([lambda: loss(two, slice(0, 4)), lambda: loss(two, slice(4, 8))]) == pytest.approx(found)
    torch.testing.assert_close(one, two)


def test_gradients_are_shortened() -> None:
    coeff, token, optimization = parts(max_grad_norm=0.5)
    norms: list[float] = []
    optimization.optimizer.register_step_pre_hook(
        lambda *_: norms.append(math.hypot(*(float(p.grad.norm()) for p in (coeff, token) if p.grad is not None)))
    )
    optimization.update([lambda: 1000 * coeff.sum()])
    assert norms == [pytest.approx(0.5, rel=1e-4)]


def test_averaging_over_processes() -> None:
    coeff, _, optimization = parts(max_grad_norm=100.0)
    seen: list[torch.Size] = []

    def average(tensor: torch.Tensor) -> torch.Tensor:
        seen.append(tensor.shape)
        return tensor / 2

    assert optimization.update([lambda: coeff.sum() * 0 + 3], average) == 1.5
    assert seen == [torch.Size([]), torch.Size([3, 3])]  # the loss and the one gradient there is


def test_a_loss_that_is_no_number_changes_nothing() -> None:
    coeff, _, optimization = parts()
    before = coeff.detach().clone()
    assert math.isnan(optimization.update([lambda: coeff.sum() * torch.nan]))
    assert torch.equal(coeff, before)
    assert coeff.grad is None


def test_float16_scales_the_loss_and_leaves_overflowing_updates_out() -> None:
    """The gradient through float16 would vanish without scaling; one that overflows is left out, rates included."""
    coeff, _, optimization = parts(mixed_precision="fp16", lr_scheduler="linear")
    before = coeff.detach().clone()

    def tiny() -> torch.Tensor:
        return (coeff.half() * 1e-4).float().sum() * 1e-5  # a gradient of 1e-9 in float16 is zero

    optimization.update([tiny])
    assert not torch.equal(coeff, before)
    assert optimization.learning_rates[0] == pytest.approx(0.9 * TrainConfig.learning_rate)
    moved, scale = coeff.detach().clone(), optimization.scaler.get_scale()
    optimization.update([lambda: (coeff.half() * 1e4).float().sum()])
    assert torch.equal(coeff, moved)
    assert optimization.scaler.get_scale() < scale
    assert optimization.learning_rates[0] == pytest.approx(0.9 * TrainConfig.learning_rate)


# --- checkpoints ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["no", "fp16"])
def test_a_checkpoint_goes_on_exactly(tmp_path: Path, precision: str) -> None:
    settings = {"lr_scheduler": "cosine", "lr_warmup_steps": 2, "mixed_precision": precision}
    coeff, token, optimization = parts(**settings)

    def steps(of: Optimizer, coeff: nn.Parameter, token: nn.Parameter, count: int) -> list[float]:
        return [of.update([lambda: (coeff.sin().sum() + token.cos().sum()) ** 2]) for _ in range(count)]

    losses = steps(optimization, coeff, token, 4)
    state = optimization.state_dict()
    Checkpoint(4, {"coeff/a.b": coeff, "token": token}, state, losses, {"seed": 0, "base": (1, 2)}).save(tmp_path / "c")
    expected = steps(optimization, coeff, token, 3)

    found = Checkpoint.load(tmp_path / "c")
    assert (found.step, found.losses) == (4, losses)
    other, word, resumed = parts(seed=9, **settings)
    found.check({"seed": 0, "base": (1, 2)}, {"coeff/a.b": other, "token": word})
    with torch.no_grad():
        other.copy_(found.parameters["coeff/a.b"])
        word.copy_(found.parameters["token"])
    resumed.load_state_dict(found.optimization)
    assert steps(resumed, other, word, 3) == expected
    assert torch.equal(other, coeff)
    assert resumed.learning_rates == optimization.learning_rates


def test_another_run_is_refused_with_both_sides(tmp_path: Path) -> None:
    coeff, token, optimization = parts()
    kept = Checkpoint(1, {"coeff/a": coeff}, optimization.state_dict(), [0.5], {"seed": 0, "layers": "all"})
    kept.save(tmp_path / "c")
    found = Checkpoint.load(tmp_path / "c")
    with pytest.raises(
        CheckpointError, match="seed was 0 and is 1; layers was 'all' and is None; data was None and is 'x'"
    ):
        found.check({"seed": 1, "data": "x"}, {"coeff/a": coeff})
    with pytest.raises(CheckpointError, match="what is trained has other names or shapes"):
        found.check({"seed": 0, "layers": "all"}, {"coeff/a": token})


def test_damaged_checkpoints(tmp_path: Path) -> None:
    coeff, _, optimization = parts()
    Checkpoint(1, {"coeff/a": coeff}, optimization.state_dict(), [0.5]).save(tmp_path / "c")
    data = (tmp_path / "c").read_bytes()
    (tmp_path / "cut").write_bytes(data[: len(data) - 9])
    (tmp_path / "other").write_bytes(data.replace(b"coeff-diffusion-checkpoint", b"coeff-diffusion-chickpoint"))
    with pytest.raises(CheckpointError, match="is not a readable checkpoint: .*go on from an earlier one"):
        Checkpoint.load(tmp_path / "cut")
    with pytest.raises(CheckpointError, match="its format is 'coeff-diffusion-chickpoint'"):
        Checkpoint.load(tmp_path / "other")
    with pytest.raises(CheckpointError, match="no checkpoint"):
        Checkpoint.load(tmp_path / "missing")


def test_finding_and_pruning(tmp_path: Path) -> None:
    for step in (5, 10, 999_999, 1_000_000):
        (tmp_path / f"step_{step:06d}.safetensors").touch()
    assert find_checkpoint("latest", tmp_path).name == "step_1000000.safetensors"
    assert find_checkpoint("step_000010", tmp_path).name == "step_000010.safetensors"
    assert (
        find_checkpoint(str(tmp_path / "step_000005.safetensors"), Path("elsewhere")).name == "step_000005.safetensors"
    )
    prune_checkpoints(tmp_path, None, 1_000_000)
    assert len(list(tmp_path.iterdir())) == 4
    prune_checkpoints(tmp_path, 3, 1_000_000)
    assert list(checkpoints_of(tmp_path)) == [10, 999_999, 1_000_000]
    prune_checkpoints(tmp_path, 1, 999_999)  # a run that went back, and will not come this way again
    assert list(checkpoints_of(tmp_path)) == [999_999]
    with pytest.raises(CheckpointError, match="no checkpoint 'step_7'"):
        find_checkpoint("step_7", tmp_path)
    with pytest.raises(CheckpointError, match="--checkpointing_steps"):
        find_checkpoint("latest", tmp_path / "nowhere")
