"""What `--offload` moves, and that neither steps nor results miss anything of it."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from coeff_diffusion.families.shared_weights import move_together, shared_pipeline
from coeff_diffusion.training import residency
from coeff_diffusion.training import trainer as training
from coeff_diffusion.training.config import TrainConfig
from coeff_diffusion.training.residency import Residency, residency_of
from coeff_diffusion.training.trainer import Trainer, train

CPU, AWAY = torch.device("cpu"), torch.device("meta")


class Far:
    """Moves networks to where nobody can read them: until they are back, their weights are no numbers."""

    def __init__(self) -> None:
        self.kept: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def __call__(self, modules: Iterable[nn.Module], device: torch.device) -> None:
        for tensor in {one for module in modules for one in (*module.parameters(), *module.buffers())}:
            assert (id(tensor) in self.kept) == (device != AWAY)
            if device == AWAY:
                self.kept[id(tensor)] = tensor, tensor.data
                tensor.data = torch.full_like(tensor, torch.nan if tensor.is_floating_point() else 0)
            else:
                _, tensor.data = self.kept.pop(id(tensor))


@pytest.fixture
def far(monkeypatch: pytest.MonkeyPatch) -> Far:
    """A training whose networks are moved, as on a GPU."""
    found = Far()
    monkeypatch.setattr(residency, "move_together", found)
    monkeypatch.setattr(training, "residency_of", lambda pipes, device, *_: Residency(pipes, device, AWAY))
    return found


@pytest.fixture
def config(subject_images: Path, tmp_path: Path) -> TrainConfig:
    return TrainConfig(
        instance_data_dir=str(subject_images), class_word="dog", output_dir=str(tmp_path / "out"), layers="all",
        max_train_steps=2, train_batch_size=2, validation_steps=0, cached_views=1, offload=True,
    )  # fmt: skip


def away(pipe: Any) -> set[str]:
    """The networks that are not there."""
    parts = {name: part for name, part in pipe.components.items() if isinstance(part, nn.Module)}
    return {name for name, part in parts.items() if next(part.parameters()).isnan().all()}


def test_weights_that_are_shared_stay_shared(tiny_pipe: Any) -> None:
    other = shared_pipeline(tiny_pipe)
    weights = [next(pipe.unet.parameters()) for pipe in (tiny_pipe, other)]
    elsewhere: Any = torch.float64  # another type is, like another device, a copy
    move_together([tiny_pipe.unet, other.unet], elsewhere)
    assert weights[0].dtype == torch.float64
    assert weights[0].data_ptr() == weights[1].data_ptr()
    assert weights[0] is next(tiny_pipe.unet.parameters())  # the very parameter that an optimizer would hold
    assert next(tiny_pipe.vae.parameters()).dtype == torch.float32


def test_only_what_is_at_work_is_on_the_device(tiny_xl_pipe: Any, far: Far) -> None:
    other = shared_pipeline(tiny_xl_pipe)
    moving = Residency((tiny_xl_pipe, other), CPU, AWAY)
    moving.keep(["unet"])
    assert away(other) == away(tiny_xl_pipe) == {"vae", "text_encoder", "text_encoder_2"}
    moving.keep(["vae"])
    assert away(other) == away(tiny_xl_pipe) == {"unet", "text_encoder", "text_encoder_2"}
    moving.keep(moving.names)
    assert not far.kept
    Residency((tiny_xl_pipe,), CPU, None).keep(())
    assert not far.kept


def test_after_a_block_those_are_at_work_that_were(tiny_pipe: Any, far: Far) -> None:
    moving = Residency((tiny_pipe,), CPU, AWAY)
    moving.keep(["unet"])
    with pytest.raises(KeyError), moving.only(()):
        raise KeyError
    assert away(tiny_pipe) == {"vae", "text_encoder"}


@pytest.mark.parametrize(
    ("what", "waiting"),
    [("coefficients+token", {"vae"}), ("coefficients", {"vae", "text_encoder", "text_encoder_2"})],
)
def test_results_and_previews_are_the_same_bit_by_bit(
    what: str, waiting: set[str], config: TrainConfig, tiny_xl_pipe: Any, far: Far, tmp_path: Path
) -> None:
    """Nothing reads what is away, and what comes back is what went."""
    config = replace(config, train=what, validation_steps=2, num_validation_images=1, resolution=16)
    trainer = Trainer(replace(config, output_dir=str(tmp_path / "moved")), tiny_xl_pipe, say=lambda line: None)
    trainer.run()
    assert away(trainer.studio.pipe) == away(trainer.learner.student) == waiting
    assert away(tiny_xl_pipe) == set()
    trainer.residency.keep(trainer.residency.names)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "residency_of", lambda pipes, device, *_: Residency(pipes, device, None))
        train(replace(config, output_dir=str(tmp_path / "still")), tiny_xl_pipe, say=lambda line: None)
    for name in ("coefficients.safetensors", "samples"):
        moved, still = (tmp_path / place / name for place in ("moved", "still"))
        files = [(one, still / one.name) for one in moved.iterdir()] if moved.is_dir() else [(moved, still)]
        assert files
        assert all(one.read_bytes() == other.read_bytes() for one, other in files)


def test_pictures_are_encoded_by_the_autoencoder_alone_and_previews_have_everything(
    config: TrainConfig, tiny_pipe: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[frozenset[str]] = []
    keep = Residency.keep
    monkeypatch.setattr(Residency, "keep", lambda self, names: (seen.append(frozenset(names)), keep(self, names))[0])
    changes: dict[str, Any] = {
        "validation_steps": 1,
        "num_validation_images": 1,
        "max_train_steps": 1,
        "resolution": 16,
    }
    train(replace(config, **changes), tiny_pipe, say=lambda line: None)
    every, steps = frozenset({"vae", "text_encoder", "unet"}), frozenset({"text_encoder", "unet"})
    assert seen == [frozenset({"vae"}), every, steps, *(every, steps) * 2]  # previews of step 0 and 1


@pytest.mark.parametrize(
    ("device", "is_own", "reason"),
    [("cpu", True, "on the CPU"), ("cuda", False, "in use by others"), ("cuda", True, "")],
)
def test_what_cannot_be_offloaded_is_said(device: str, is_own: bool, reason: str, tiny_pipe: Any) -> None:
    said: list[str] = []
    found = residency_of((tiny_pipe,), torch.device(device), True, is_own, said.append)
    assert (found.away is None) == bool(reason)
    assert [reason in line and line.startswith("--offload changes nothing here") for line in said] == [True] * bool(
        reason
    )
    assert residency_of((tiny_pipe,), torch.device(device), False, is_own, said.append).away is None
    assert len(said) == bool(reason)
