"""The methods of adapters: what each learns of a projection of weights `W [out, in]`, and the form of its file.

What each computes stands in `method/adapter_math.py`; here is what settings and files have to know, and no torch.

LoRAs lie in the form of diffusers, `unet.<projection>.<tensor>`. What PEFT has, and diffusers does not load into a
UNet, lies in PEFT's, `base_model.model.<projection>.<tensor>` with an `adapter_config.json`. SSF and bottleneck
adapters are in neither: they are named as LoRAs are, in a file of another name.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import isqrt
from typing import Literal

Start = Literal["uniform", "zero", "one", "length"]
"""Where a tensor starts: uniform up to 1 / sqrt(its last side), as in PEFT; at zero; at one; at the lengths of W's
rows. What starts at zero or at random is rounded to float16 in files; the others hold what the base has, nearly, and to
round them is to change the base."""
Shapes = dict[str, tuple[int, ...]]
Sides = tuple[int, int | None]
"""Channels out of a projection and into it; None where no tensor tells."""

PROJECTIONS = ("to_q", "to_k", "to_v", "to_out.0")
LORA_FILE = "pytorch_lora_weights.safetensors"
PEFT_FILE, PEFT_CONFIG = "adapter_model.safetensors", "adapter_config.json"
OWN_FILE = "attention_adapter.safetensors"
ADAPTER_FILES = (LORA_FILE, PEFT_FILE, OWN_FILE)
PREFIXES = {LORA_FILE: "unet.", PEFT_FILE: "base_model.model.", OWN_FILE: "unet."}


@dataclass(frozen=True)
class Method:
    """What a method keeps of each projection.

    Attributes:
        starts: all the tensors there may be, by name.
        shapes: those of a projection, from rank, channels out and channels in.
        sides: the inverse, from the shapes that a file has. Raises KeyError or IndexError: they are not of this method.
        ranked: whether people choose a rank.
        projections: those of an attention layer that it changes.
        file: how the file is called beside a subject.
        peft: what PEFT's config says beside rank and projections.
        reads_weights: whether it computes with the base's weights, which must not be rounded then.
    """

    starts: Mapping[str, Start]
    shapes: Callable[[int, int, int], Shapes]
    sides: Callable[[Shapes], Sides]
    ranked: bool = True
    projections: tuple[str, ...] = PROJECTIONS
    file: str = LORA_FILE
    peft: Mapping[str, object] = field(default_factory=dict)
    reads_weights: bool = False


DOWN, UP, MAGNITUDE = "lora_A.weight", "lora_B.weight", "lora_magnitude_vector"


def _lora(rank: int, out: int, into: int) -> Shapes:
    return {DOWN: (rank, into), UP: (out, rank)}


def _dora(rank: int, out: int, into: int) -> Shapes:
    return {**_lora(rank, out, into), MAGNITUDE: (out,)}


def _loha(rank: int, out: int, into: int) -> Shapes:
    first: Shapes = {"hada_w1_a": (out, rank), "hada_w1_b": (rank, into)}
    return {**first, "hada_w2_a": (out, rank), "hada_w2_b": (rank, into)}


def _lokr(rank: int, out: int, into: int) -> Shapes:
    """As PEFT cuts them: both sides near their square roots, the larger factor of low rank where that is smaller."""
    (few_out, many_out), (few_in, many_in) = factors(out), factors(into)
    if 2 * rank >= max(many_out, many_in):
        return {"lokr_w1": (few_out, few_in), "lokr_w2": (many_out, many_in)}
    return {"lokr_w1": (few_out, few_in), "lokr_w2_a": (many_out, rank), "lokr_w2_b": (rank, many_in)}


def _lokr_sides(shapes: Shapes) -> Sides:
    few, many_out, many_in = shapes["lokr_w1"], shapes.get("lokr_w2"), shapes.get("lokr_w2")
    many_out, many_in = many_out or shapes["lokr_w2_a"], many_in or shapes["lokr_w2_b"]
    return few[0] * many_out[0], few[1] * many_in[1]


def factors(number: int) -> tuple[int, int]:
    """The two factors nearest to the square root, the smaller one first: PEFT's `factorization`."""
    small = next(one for one in range(isqrt(number), 0, -1) if number % one == 0)
    return small, number // small


def _bottleneck(rank: int, out: int, into: int) -> Shapes:
    down: Shapes = {"adapter_down.weight": (rank, out), "adapter_down.bias": (rank,)}
    return {**down, "adapter_up.weight": (out, rank), "adapter_up.bias": (out,)}


REGISTRY: dict[str, Method] = {
    "lora": Method({DOWN: "uniform", UP: "zero"}, _lora, lambda shapes: (shapes[UP][0], shapes[DOWN][1])),
    "dora": Method(
        {DOWN: "uniform", UP: "zero", MAGNITUDE: "length"},
        _dora,
        lambda shapes: (shapes[UP][0], shapes[DOWN][1]),
        reads_weights=True,
    ),
    "loha": Method(
        {"hada_w1_a": "uniform", "hada_w1_b": "uniform", "hada_w2_a": "uniform", "hada_w2_b": "zero"},
        _loha,
        lambda shapes: (shapes["hada_w1_a"][0], shapes["hada_w1_b"][1]),
        file=PEFT_FILE,
        peft={"peft_type": "LOHA"},
    ),
    "lokr": Method(
        {"lokr_w1": "zero", "lokr_w2": "uniform", "lokr_w2_a": "uniform", "lokr_w2_b": "uniform"},
        _lokr,
        _lokr_sides,
        file=PEFT_FILE,
        peft={"peft_type": "LOKR"},
    ),
    "ia3": Method(
        {"ia3_l": "one"},
        lambda rank, out, into: {"ia3_l": (out, 1)},
        lambda shapes: (shapes["ia3_l"][0], None),
        ranked=False,
        projections=("to_k", "to_v"),  # as in its paper, which scales the MLP, too
        file=PEFT_FILE,
        peft={"peft_type": "IA3", "feedforward_modules": []},
    ),
    "ssf": Method(
        {"ssf_scale": "one", "ssf_shift": "zero"},
        lambda rank, out, into: {"ssf_scale": (out,), "ssf_shift": (out,)},
        lambda shapes: (shapes["ssf_scale"][0], None),
        ranked=False,
        file=OWN_FILE,
    ),
    "adapter": Method(
        {
            "adapter_down.weight": "uniform",
            "adapter_down.bias": "zero",
            "adapter_up.weight": "zero",
            "adapter_up.bias": "zero",
        },
        _bottleneck,
        lambda shapes: (shapes["adapter_up.weight"][0], None),
        projections=("to_out.0",),  # after the attention layer, as in its paper
        file=OWN_FILE,
    ),
}
