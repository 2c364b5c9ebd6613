"""The script for SD.Next in docs/hosts.md, on a stand-in for the two modules of SD.Next that it imports."""

import re
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline

from coeff_diffusion import Coefficients
from coeff_diffusion.subject.errors import CoefficientsError

gradio = pytest.importorskip("gradio")

PAGE = Path(__file__).parents[2] / "docs" / "hosts.md"


@pytest.fixture
def script(tiny_pipe: StableDiffusionPipeline, monkeypatch: pytest.MonkeyPatch) -> Any:
    """SD.Next calls `run` before it draws with `shared.sd_model`, and `after` afterwards, with the controls' values."""
    modules, shared, manager = (types.ModuleType(name) for name in ("modules", "shared", "scripts_manager"))
    shared.sd_model, manager.Script = tiny_pipe, object  # type: ignore[attr-defined]
    modules.shared, modules.scripts_manager = shared, manager  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "modules", modules)
    (code,) = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    names: dict[str, Any] = {}
    exec(compile(code, str(PAGE), "exec"), names)
    return names["Script"]()


def draw(pipe: StableDiffusionPipeline, prompt: str) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    found: torch.Tensor = pipe(prompt, num_inference_steps=2, generator=generator, output_type="latent").images
    return found


def test_a_subject_acts_in_one_drawing(
    script: Any, tiny_pipe: StableDiffusionPipeline, new_subject: Callable[..., Coefficients], tmp_path: Path
) -> None:
    file = tmp_path / "rex.safetensors"
    new_subject("rex", "rex dog", 1, class_word="dog").save(file)
    with gradio.Blocks():
        assert [control.label for control in script.ui(False)] == ["Subject", "Strength"]
    base, p = draw(tiny_pipe, "a rex dog"), types.SimpleNamespace(extra_generation_params={})
    for strength in (0.5, 1.0):  # the first one is broken off
        assert script.run(p, str(file), strength) is None  # then SD.Next draws
    drawn = draw(tiny_pipe, "a rex dog")
    assert not torch.allclose(drawn, base, atol=0.01)
    assert p.extra_generation_params == {"Coeff subject": "rex: 1.0"}
    assert script.after(p, "pictures", str(file), 1.0) == "pictures"
    assert torch.equal(draw(tiny_pipe, "a rex dog"), base)

    script.run(p, str(file), 1.0)
    with pytest.raises(CoefficientsError, match="prompt_embeds were given"):
        tiny_pipe(prompt_embeds=torch.zeros(1, 77, 32), negative_prompt_embeds=torch.zeros(1, 77, 32))
    with pytest.raises(CoefficientsError, match="nothing"):
        script.run(p, str(tmp_path / "nothing.safetensors"), 1.0)
    assert torch.equal(draw(tiny_pipe, "a rex dog"), base)
