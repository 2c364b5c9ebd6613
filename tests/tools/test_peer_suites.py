"""Other projects' tests with coefficients attached: here two small ones, in the place of diffusers' own."""

import textwrap
from pathlib import Path
from typing import Any

import pytest

TOOLS = Path(__file__).parents[2] / "tools"
TESTS = '''
    """Tests as a checkout of diffusers has them."""
    import unittest
    import torch
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

    def unet():
        torch.manual_seed(0)
        return UNet2DConditionModel(
            sample_size=8, block_out_channels=(8,), layers_per_block=1, attention_head_dim=4, cross_attention_dim=16,
            down_block_types=("CrossAttnDownBlock2D",), up_block_types=("CrossAttnUpBlock2D",), norm_num_groups=4,
        ).eval()

    @torch.no_grad()
    def drawn(model):
        generator = torch.Generator().manual_seed(1)
        sample, text = (torch.randn(size, generator=generator) for size in ((1, 4, 8, 8), (1, 5, 16)))
        return model(sample, 3, text).sample

    class UNetTests(unittest.TestCase):
        def test_numbers(self):
            mean = drawn(unet()).double().abs().mean().item()
            assert abs(mean - float(open("mean.txt").read())) < 1e-9, mean

        def test_saved_and_loaded(self):
            model = unet()
            model.save_pretrained("saved")
            assert torch.equal(drawn(model), drawn(UNet2DConditionModel.from_pretrained("saved")))

        def test_attention_that_is_spelled_out(self):
            model = unet()
            model.set_default_attn_processor()
            drawn(model)

        def test_text_of_the_hub(self):
            name = "peft-internal-testing/tiny-clip-text-2"
            tokens = CLIPTokenizer.from_pretrained(name)("a cat", return_tensors="pt").input_ids
            assert CLIPTextModel.from_pretrained(name)(tokens).last_hidden_state.shape == (1, 6, 32)

        def test_checkpoint_of_the_hub(self):
            UNet2DConditionModel.from_pretrained("somebody/something")

        @unittest.skip("wants a GPU")
        def test_of_a_gpu(self):
            pass
'''


@pytest.fixture
def peers(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(TOOLS))
    import peer_suites

    return peer_suites


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_unet.py").write_text(textwrap.dedent(TESTS))
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    return tmp_path


@pytest.mark.slow
def test_zero_coefficients_make_no_difference_and_random_ones_do(
    peers: Any, checkout: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    space: dict[str, Any] = {}
    exec(textwrap.dedent(TESTS), space)
    (checkout / "mean.txt").write_text(repr(space["drawn"](space["unet"]()).double().abs().mean().item()))
    monkeypatch.setattr(peers, "SUITES", {"unet": ["tests/test_unet.py"]})
    assert peers.main([str(checkout)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == [f"unet, {mode}: 4 passed, 1 failed, 1 skipped" for mode in ("without", "zero")]
    assert [line.partition(" -> ")[0] for line in lines[3:-1]] == [
        "  random: UNetTests::test_attention_that_is_spelled_out passed",
        "  random: UNetTests::test_numbers passed",
    ]
    assert "scaled_dot_product_attention" in lines[3]
    assert lines[-1] == "zero coefficients make no difference"


def test_what_zero_coefficients_change_is_counted(peers: Any) -> None:
    one, two = peers.Outcome("passed"), peers.Outcome("failed", "why")
    before, after = {"a": one, "b": two, "c": one}, {"a": two, "b": two, "d": one}
    gone = peers.Outcome("missing")
    assert peers.differences(before, after) == {"a": (one, two), "c": (one, gone), "d": (gone, one)}
    other = peers.Outcome("failed", "other numbers")
    assert peers.differences({"a": two}, {"a": other}) == {}
    assert peers.differences({"a": two, "b": two}, {"a": other, "b": two}, words=True) == {"a": (two, other)}


def test_a_folder_without_the_tests_is_said(peers: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert peers.main([str(tmp_path), "lora"]) == 2
    assert f"{tmp_path} has no tests/lora/test_lora_layers_sd.py" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        peers.main([str(tmp_path), "nothing"])
