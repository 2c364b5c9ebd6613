"""What kinds of adapters there are, and what their files may hold: PEFT's own shapes are the oracle."""

import hashlib
import json

import pytest
import safetensors.torch
import torch
from peft.tuners.lokr.layer import factorization

from coeff_diffusion.subject.adapter import Adapter
from coeff_diffusion.subject.adapter_kind import METHODS, AdapterKind
from coeff_diffusion.subject.adapter_methods import REGISTRY, factors
from coeff_diffusion.subject.errors import CoefficientsError
from coeff_diffusion.subject.info import CoefficientsInfo

KINDS = [AdapterKind(name, 2 if REGISTRY[name].ranked else 0) for name in METHODS]
PATH = "mid_block.attentions.0.transformer_blocks.0.attn1.to_k"


def adapter(kind: AdapterKind) -> Adapter:
    """Of one projection of 20 x 12 channels."""
    return Adapter(kind, {PATH: {name: torch.ones(shape) for name, shape in kind.shapes(20, 12).items()}})


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_a_kind_is_read_as_it_is_written_and_its_tensors_tell_the_sides(kind: AdapterKind) -> None:
    assert AdapterKind.parse(str(kind)) == kind
    for out, into in ((20, 12), (7, 7), (1280, 2048), (1, 3)):
        shapes = kind.shapes(out, into)
        assert shapes.keys() <= kind.about.starts.keys()
        assert kind.sides(shapes) in ((out, into), (out, None))


def test_sides_are_cut_for_lokr_as_peft_cuts_them() -> None:
    assert all(factors(number) == factorization(number) for number in range(1, 400))
    assert AdapterKind("lokr", 3).shapes(20, 12).keys() == {"lokr_w1", "lokr_w2"}
    assert AdapterKind("lokr", 2).shapes(20, 12).keys() == {"lokr_w1", "lokr_w2_a", "lokr_w2_b"}


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_a_file_is_read_again_and_only_as_what_it_is(kind: AdapterKind) -> None:
    made = adapter(kind)
    assert Adapter.from_bytes(made.data, kind, made.sha256) == made
    for other in {*KINDS, AdapterKind("lora", 3), AdapterKind("lokr", 1)} - {kind}:
        with pytest.raises(CoefficientsError, match=f"no readable {other}|which is not {other}"):
            Adapter.from_bytes(made.data, other, made.sha256)
    with pytest.raises(CoefficientsError, match="its SHA-256 is"):
        Adapter.from_bytes(made.data, kind, "0" * 64)


def test_what_no_adapter_has_is_refused() -> None:
    kind = AdapterKind.parse("lokr:2")
    whole = {f"{kind.prefix}{PATH}.{name}": torch.ones(shape) for name, shape in kind.shapes(20, 12).items()}
    first = next(iter(whole))
    cut_elsewhere = {"lokr_w1": (2, 3), "lokr_w2_a": (10, 2), "lokr_w2_b": (2, 4)}  # 20 x 12, too
    for tensors, why in (
        ({**whole, "else": torch.ones(1)}, "it holds 'else'"),
        ({**whole, first: whole[first].double()}, "of torch.float64"),
        ({**whole, first: whole[first] / 0}, "values that are no numbers"),
        ({name: tensor for name, tensor in whole.items() if name != first}, "which is not lokr:2"),
        ({name: tensor[None] for name, tensor in whole.items()}, "which is not lokr:2"),
        ({f"{kind.prefix}{PATH}.{name}": torch.ones(shape) for name, shape in cut_elsewhere.items()}, "is not lokr:2"),
        ({f"{kind.prefix}{PATH}.lokr_w1": torch.ones(2**9, 1), f"{kind.prefix}{PATH}.lokr_w2": torch.ones(2**9, 1)},
         "is not lokr:2"),
        ({}, "it holds no projection"),
    ):  # fmt: skip
        data = safetensors.torch.save(tensors)
        with pytest.raises(CoefficientsError, match=why):
            Adapter.from_bytes(data, kind, hashlib.sha256(data).hexdigest())


@pytest.mark.parametrize(
    "written", ["lora", "lora:0", "lora:65", "lora:04", "oft:4", "ia3:4", "ia3:99", "ssf:", "LORA:4", "lora:4:4", ""]
)
def test_a_kind_that_is_none_is_refused_with_all_that_there_are(written: str) -> None:
    with pytest.raises(CoefficientsError, match="is not known; expected lora:RANK, .* or ia3 or ssf without") as error:
        AdapterKind.parse(written)
    assert all(name in str(error.value) for name in METHODS)
    if written:
        with pytest.raises(CoefficientsError, match="is not known"):
            CoefficientsInfo(adapter=written)


def test_only_what_peft_loads_has_a_config_for_it() -> None:
    configs = {kind.method: kind.peft_config() for kind in KINDS}
    assert {name for name, config in configs.items() if config} == {"loha", "lokr", "ia3"}
    assert json.loads(configs["loha"])["alpha"] == json.loads(configs["loha"])["r"] == 2
    assert all(bool(kind.loaded_by) == (kind.method not in ("ssf", "adapter")) for kind in KINDS)
