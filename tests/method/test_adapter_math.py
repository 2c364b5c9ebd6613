"""Each method on one projection: against PEFT's own layers, and against its formula where PEFT has none."""

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.nn.functional import relu

from coeff_diffusion.method.adapter_math import ACTS
from coeff_diffusion.subject.adapter import Adapter
from coeff_diffusion.subject.adapter_kind import METHODS, AdapterKind

OUT, INTO = 20, 12


def learned(kind: AdapterKind) -> dict[str, Tensor]:
    """Numbers as a training leaves them: near one where they start there."""
    return {
        name: torch.randn(shape) / 4 + (kind.about.starts[name] in ("one", "length"))
        for name, shape in kind.shapes(OUT, INTO).items()
    }


def test_every_method_has_its_mathematics() -> None:
    assert tuple(ACTS) == METHODS


@pytest.mark.parametrize("written", ["loha:2", "lokr:2", "lokr:3", "ia3"])
def test_the_methods_of_peft_are_pefts_bit_by_bit(written: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    kind, layer, x = AdapterKind.parse(written), nn.Linear(INTO, OUT), torch.randn(3, 5, INTO)
    numbers = learned(kind)
    for name, content in Adapter(kind, {"to_k": numbers}).files.items():
        (tmp_path / name).write_bytes(content)
    parameters = {name: nn.Parameter(tensor) for name, tensor in numbers.items()}
    ours = ACTS[kind.method](layer, x, layer(x), parameters, 1.0)
    theirs = PeftModel.from_pretrained(nn.ModuleDict({"to_k": layer}), str(tmp_path), is_trainable=True)
    out = theirs.base_model.model["to_k"](x)
    assert torch.equal(ours, out)
    ours.square().sum().backward()
    out.square().sum().backward()
    gradients = {name.split(".")[-2]: one.grad for name, one in theirs.named_parameters() if one.grad is not None}
    for name, parameter in parameters.items():
        torch.testing.assert_close(parameter.grad, gradients[name])


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("bias", [True, False])
def test_a_strength_is_each_rows_own_and_at_zero_nothing_changes(name: str, bias: bool) -> None:
    torch.manual_seed(0)
    kind = AdapterKind(name, 2)
    layer, x, numbers = nn.Linear(INTO, OUT, bias), torch.randn(3, 5, INTO), learned(kind)
    output = layer(x)
    whole, half, none = (ACTS[name](layer, x, output, numbers, strength) for strength in (1.0, 0.5, 0.0))
    mixed = ACTS[name](layer, x, output, numbers, torch.tensor([0.0, 1.0, 0.5]).view(3, 1, 1))
    assert torch.equal(none, output)
    assert torch.equal(mixed[0], output[0])
    assert torch.equal(mixed[1], whole[1])
    assert torch.equal(mixed[2], half[2])
    assert not torch.equal(whole, output)
    torch.testing.assert_close(half, (whole + output) / 2)  # all are linear in the strength


def test_the_methods_that_peft_lacks_are_their_formulas() -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(INTO, OUT), torch.randn(3, 5, INTO)
    y = layer(x)
    numbers = learned(AdapterKind("ssf"))
    found = ACTS["ssf"](layer, x, y, numbers, 1.0)
    torch.testing.assert_close(found, y * numbers["ssf_scale"] + numbers["ssf_shift"])
    numbers = learned(AdapterKind("adapter", 2))
    inner = relu(y @ numbers["adapter_down.weight"].T + numbers["adapter_down.bias"])
    expected = y + inner @ numbers["adapter_up.weight"].T + numbers["adapter_up.bias"]
    torch.testing.assert_close(ACTS["adapter"](layer, x, y, numbers, 1.0), expected)


def test_factors_near_one_act_before_they_are_rounded_to_half_precision() -> None:
    layer, x = nn.Linear(INTO, OUT).half(), torch.ones(1, INTO, dtype=torch.float16)
    output, scale = torch.full((1, OUT), 1000.0, dtype=torch.float16), torch.full((OUT, 1), 1.0004)
    assert float(scale.half()[0]) == 1.0
    found = ACTS["ia3"](layer, x, output, {"ia3_l": scale}, 1.0)
    assert found.dtype == torch.float16
    assert torch.equal(found, (output.float() * scale.flatten()).half())
