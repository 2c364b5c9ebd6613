"""An adapter in training: how it starts, and that others load what it leaves."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from peft import PeftModel
from torch import Tensor

from coeff_diffusion.families.registry import family_of
from coeff_diffusion.method.adapter_hooks import check_adapters, detach_adapters, projections, set_adapters
from coeff_diffusion.method.errors import AttachmentError
from coeff_diffusion.subject.adapter_kind import METHODS, AdapterKind
from coeff_diffusion.subject.adapter_methods import PEFT_CONFIG, REGISTRY
from coeff_diffusion.training.adapter import LearningAdapter, is_rounded

CPU = torch.device("cpu")


class Tried:
    """A UNet that is asked the same thing again and again."""

    def __init__(self, pipe: Any) -> None:
        self.unet, self.sites = pipe.unet.requires_grad_(False), family_of(pipe).sites(pipe.unet)
        config, generator = self.unet.config, torch.Generator().manual_seed(0)
        sample = torch.randn(2, config.in_channels, 8, 8, generator=generator)
        text = torch.randn(2, 7, config.cross_attention_dim, generator=generator)
        self.inputs: dict[str, Any] = {"sample": sample, "timestep": 500, "encoder_hidden_states": text}
        if config.addition_embed_type is not None:
            pooled = torch.randn(2, pipe.text_encoder_2.config.projection_dim, generator=generator)
            self.inputs["added_cond_kwargs"] = {"text_embeds": pooled, "time_ids": torch.ones(2, 6)}

    def __call__(self) -> Tensor:
        with torch.no_grad():
            found: Tensor = self.unet(**self.inputs, return_dict=False)[0]
        return found


def kind_of(name: str) -> AdapterKind:
    return AdapterKind(name, 2 if REGISTRY[name].ranked else 0)


def moved(adapter: LearningAdapter) -> None:
    """As if it had learned something."""
    torch.manual_seed(1)
    for parameter in adapter.parameters.values():
        parameter.data += torch.randn_like(parameter) / 8


@pytest.mark.parametrize("name", METHODS)
def test_it_starts_as_the_base_and_learns_by_gradients(name: str, tiny_pipe: StableDiffusionPipeline) -> None:
    tried = Tried(tiny_pipe)
    base = tried()
    adapter = LearningAdapter(tried.unet, tried.sites.values(), kind_of(name), 0, CPU)
    assert torch.equal(tried(), base)
    tried.unet(**tried.inputs, return_dict=False)[0].square().sum().backward()
    moving = [path for path, one in adapter.parameters.items() if one.grad is not None and bool(one.grad.any())]
    assert moving
    moved(adapter)
    assert all(one.isfinite().all() for one in adapter.parameters.values())
    exact = adapter.snapshot()
    assert {tensor.dtype for path, named in exact.factors.items() for part, tensor in named.items()
            if is_rounded(part)} <= {torch.float16}  # fmt: skip
    set_adapters(tried.unet, [(exact, torch.tensor([0.0, 1.0]))])
    mixed = tried()
    assert torch.equal(mixed[0], base[0])
    assert not torch.equal(mixed[1], base[1])
    detach_adapters(tried.unet)
    assert torch.equal(tried(), base)


@pytest.mark.parametrize("name", ["loha", "lokr", "ia3"])
@pytest.mark.parametrize("xl", [False, True])
def test_stock_peft_loads_the_folder_and_gives_the_same_bits(
    name: str, xl: bool, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    pipe: StableDiffusionPipeline | StableDiffusionXLPipeline
    pipe = request.getfixturevalue("tiny_xl_pipe" if xl else "tiny_pipe")
    tried = Tried(pipe)
    base, learning = tried(), LearningAdapter(tried.unet, tried.sites.values(), kind_of(name), 0, CPU)
    moved(learning)
    adapter = learning.snapshot()
    set_adapters(tried.unet, [(adapter, 1.0)])
    ours = tried()
    detach_adapters(tried.unet)
    for file, content in adapter.files.items():
        (tmp_path / file).write_bytes(content)
    assert (tmp_path / PEFT_CONFIG).is_file()
    PeftModel.from_pretrained(tried.unet, str(tmp_path))
    assert torch.equal(tried(), ours)
    assert not torch.equal(ours, base)


def test_an_adapter_of_another_base_is_refused_by_its_sides(
    tiny_pipe: StableDiffusionPipeline, tiny_xl_pipe: StableDiffusionXLPipeline
) -> None:
    own, other = Tried(tiny_pipe), Tried(tiny_xl_pipe)
    layers = projections(own.sites.values())
    for name in METHODS:
        adapter = LearningAdapter(other.unet, other.sites.values(), kind_of(name), 0, CPU).snapshot()
        with pytest.raises(AttachmentError, match="it belongs to another base"):
            check_adapters([adapter], layers)
        detach_adapters(other.unet)
