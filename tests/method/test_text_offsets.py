"""What stages read beside the text: only they, only where it is said, and against layers changed one by one."""

import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor2_0
from small_networks import TOKENS, output_of, small_network
from torch import Tensor

from coeff_diffusion.method.errors import AttachmentError
from coeff_diffusion.method.sites import find_sites, text_stages
from coeff_diffusion.method.text_offsets import at_positions, attach_offsets, detach_offsets, set_offsets

STAGES = ["down_blocks.0", "down_blocks.1", "up_blocks.0", "up_blocks.1", "mid_block"]


class Adding(AttnProcessor2_0):
    """A layer that reads another text than it is given."""

    def __init__(self, offset: Tensor) -> None:
        super().__init__()
        self.offset = offset

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, *args, **kwargs):  # type: ignore[no-untyped-def]
        return super().__call__(attn, hidden_states, encoder_hidden_states + self.offset, *args, **kwargs)


@pytest.fixture
def unet(tiny_pipe: StableDiffusionPipeline) -> UNet2DConditionModel:
    return tiny_pipe.unet.eval().requires_grad_(False)


@pytest.fixture
def given() -> tuple[Tensor, Tensor, Tensor]:
    return torch.randn(2, 4, 8, 8), torch.tensor([10, 500]), torch.randn(2, 7, 32)


@torch.no_grad()
def run(unet: UNet2DConditionModel, given: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    sample, timesteps, text = given
    return unet(sample, timesteps, encoder_hidden_states=text, return_dict=False)[0]  # type: ignore[no-any-return]


def test_stages_are_the_parts_that_read_the_text(unet: UNet2DConditionModel) -> None:
    assert sorted(text_stages(find_sites(unet).values())) == sorted(STAGES)


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_reads_what_its_layers_would_be_given(
    unet: UNet2DConditionModel, given: tuple[Tensor, Tensor, Tensor], stage: str
) -> None:
    before, offset = run(unet, given), torch.randn(2, 7, 32)
    attach_offsets(unet, STAGES)
    set_offsets(unet, {stage: offset})
    found = run(unet, given)
    detach_offsets(unet)
    assert torch.equal(run(unet, given), before)
    processors = {
        name: Adding(offset) if name.startswith(f"{stage}.") and ".attn2." in name else one
        for name, one in unet.attn_processors.items()
    }
    assert sum(isinstance(one, Adding) for one in processors.values()) >= 1
    unet.set_attn_processor(processors)
    assert torch.equal(found, run(unet, given))
    assert not torch.allclose(found, before)


def test_rows_and_places_without_an_offset_are_the_bases(
    unet: UNet2DConditionModel, given: tuple[Tensor, Tensor, Tensor]
) -> None:
    before = run(unet, given)
    attach_offsets(unet, STAGES)
    assert torch.equal(run(unet, given), before)
    offset = torch.zeros(2, 7, 32)
    set_offsets(unet, {"mid_block": offset})
    assert torch.equal(run(unet, given), before)
    offset[1, 3] = 1.0
    set_offsets(unet, {"mid_block": offset})
    found = run(unet, given)
    assert torch.equal(found[0], before[0])
    assert not torch.allclose(found[1], before[1])
    set_offsets(unet, {})
    assert torch.equal(run(unet, given), before)


def test_several_rows_of_a_sample_get_its_offset(
    unet: UNet2DConditionModel, given: tuple[Tensor, Tensor, Tensor]
) -> None:
    sample, timesteps, text = (x.repeat_interleave(2, 0) for x in given)
    offset = torch.randn(2, 7, 32)
    attach_offsets(unet, STAGES)
    set_offsets(unet, {"mid_block": offset})
    found = run(unet, (sample, timesteps, text))
    set_offsets(unet, {"mid_block": offset.repeat_interleave(2, 0)})
    assert torch.equal(found, run(unet, (sample, timesteps, text)))


def test_what_does_not_fit_is_an_error(unet: UNet2DConditionModel, given: tuple[Tensor, Tensor, Tensor]) -> None:
    with pytest.raises(AttachmentError, match="nothing is attached to mid_block; attached are none"):
        set_offsets(unet, {"mid_block": torch.zeros(7, 32)})
    attach_offsets(unet, STAGES)
    with pytest.raises(AttachmentError, match="has text offsets already"):
        attach_offsets(unet, STAGES)
    with pytest.raises(AttachmentError, match=r"nothing is attached to up_blocks.7"):
        set_offsets(unet, {"up_blocks.7": torch.zeros(7, 32)})
    set_offsets(unet, {"mid_block": torch.ones(2, 6, 32)})
    with pytest.raises(AttachmentError, match=r"mid_block reads text of \[2, 7, 32\], .* added is \[2, 6, 32\]"):
        run(unet, given)
    set_offsets(unet, {"mid_block": torch.ones(3, 7, 32)})
    with pytest.raises(AttachmentError, match="mid_block reads text of"):
        run(unet, given)


def test_a_gradient_reaches_the_vectors(unet: UNet2DConditionModel, given: tuple[Tensor, Tensor, Tensor]) -> None:
    attach_offsets(unet, STAGES)
    vectors = torch.zeros(2, 32, requires_grad=True)
    places = torch.tensor([[-1, 0, 1, -1, -1, -1, -1], [-1, -1, -1, 0, 1, -1, -1]])
    set_offsets(unet, {"up_blocks.1": at_positions(vectors, places)})
    sample, timesteps, text = given
    unet(sample, timesteps, encoder_hidden_states=text).sample.square().mean().backward()
    assert vectors.grad is not None
    assert bool(vectors.grad.abs().sum(1).gt(0).all())


@torch.no_grad()
def test_a_compiled_network_notices() -> None:
    unet, arguments = small_network("stable_diffusion")
    compiled = torch.compile(unet, backend="eager")
    before = output_of(compiled, arguments)
    attach_offsets(compiled, ["mid_block"])
    set_offsets(compiled, {"mid_block": torch.ones(TOKENS, 32)})
    found = output_of(compiled, arguments)
    assert torch.allclose(found, output_of(unet, arguments), atol=1e-6)
    assert not torch.allclose(found, before)
    detach_offsets(compiled)
    assert torch.allclose(output_of(compiled, arguments), before, atol=1e-6)


def test_vectors_stand_at_their_places() -> None:
    vectors = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    found = at_positions(vectors, torch.tensor([[-1, 1, 0], [0, -1, -1]]))
    assert torch.equal(found, torch.tensor([[[0, 0], [3, 4], [1, 2]], [[1, 2], [0, 0], [0, 0]]]).float())
