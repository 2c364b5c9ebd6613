"""Timelines and checkpoints as a bad disk or a bad person leaves them, and what reading one may end in.

`timelines()` and `checkpoints()` make the bytes; `play` and `resume` read a file as a run does; `read_timeline` and
`read_checkpoint` return what came of it: something that works, or one of the project's own errors. Anything else passes
through.
"""

import json
import math
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from hypothesis import strategies as st
from mutated_files import DTYPES, JUNK, OFFSETS, SHAPES, SUBJECT, VALUES, damaged, joined, split, with_value
from torch import nn

from coeff_diffusion import Coefficients, CoefficientsError
from coeff_diffusion.training.checkpoint import Checkpoint, CheckpointError
from coeff_diffusion.training.config import TrainConfig
from coeff_diffusion.training.optimizer import Optimizer
from coeff_diffusion.training.timeline import load_losses, load_timeline, load_validation, save_timeline
from coeff_diffusion.training.validation import best_step

IDENTITY = {"seed": 0, "base": [1, 2], "blocks": []}
STEPS = 3
TEXTS = st.sampled_from([
    "[" * 100_000, '{"a":' * 50_000, "[" * 900 + "]" * 900, "[" * 40 + "]" * 40, "1e999", "NaN", "-Infinity", "-1",
    str(10**400), "9" * 5_000, "null", "true", "[]", "{}", "[[]]", '[1e999]', '[NaN]', '["1"]', "[null]", "", "{",
])  # fmt: skip
NUMBERS = st.sampled_from([-1, 0, 1, 2**31, 2**63, 10**30, 10**400, 1e308, 0.5, True, False, None, "1", [], {}])
NAMES = st.one_of(
    st.sampled_from([
        "step_000002/unet/mid_block.attn2.coeff", "step_-1/x", "step_inf/text_encoder/token", "step_/x", "step_1", "/",
        f"step_{'9' * 5_000}/text_encoder/token", "step_2/text_encoder/token", "step_²/text_encoder/token",
        "parameters/", "parameters/coeff/b", "optimizer/0/step", "optimizer/-1/step", "optimizer/99/exp_avg",
        "optimizer/0", "optimizer/0/exp_avg/x", f"optimizer/{'9' * 5_000}/step", "optimizer//step", "x",
    ]),
    st.text(max_size=30),
)  # fmt: skip


def parts() -> tuple[dict[str, nn.Parameter], Optimizer]:
    """Something small that learns: a matrix and a token."""
    generator = torch.Generator().manual_seed(0)
    coeff, token = (nn.Parameter(torch.randn(size, generator=generator)) for size in ((2, 2), (1, 4)))
    groups = [([coeff], 1e-3), ([token], 2e-2)]
    optimizer = Optimizer(groups, TrainConfig(lr_scheduler="cosine"), torch.device("cpu"))
    return {"coeff/a": coeff, "token/text_encoder": token}, optimizer


def learn(parameters: dict[str, nn.Parameter], optimizer: Optimizer) -> float:
    return optimizer.update([lambda: sum(one.square().sum() for one in parameters.values())])


def _valid(kind: str) -> bytes:
    with TemporaryDirectory() as folder:
        path = Path(folder, "file")
        if kind == "timeline":
            save_timeline(path, {1: SUBJECT, 2: SUBJECT.scaled(0.5)}, [0.5, 0.25], {0: 0.5, 2: 0.25})
        else:
            parameters, optimizer = parts()
            losses = [learn(parameters, optimizer) for _ in range(STEPS)]
            Checkpoint(STEPS, parameters, optimizer.state_dict(), losses, IDENTITY, {0: 0.5, 2: 0.25}).save(path)
        return path.read_bytes()


VALID_TIMELINE, VALID_CHECKPOINT = _valid("timeline"), _valid("checkpoint")


@st.composite
def mutated(draw: st.DrawFn, valid: bytes) -> bytes:
    """A valid file after a few mutations of its tensors and of the JSON in its metadata, and then perhaps its bytes."""
    header, tensors = split(valid)
    for _ in range(draw(st.integers(1, 3))):
        metadata = header.get("__metadata__")
        entries = [name for name, entry in header.items() if name != "__metadata__"]
        kind = draw(st.sampled_from(["json"] * 5 + ["text", "tensor", "name", "value", "drop"]))
        if kind in ("json", "text") and isinstance(metadata, dict):
            meant = sorted(metadata.keys() - {"format", "format_version"}) or ["format"]
            key = draw(st.sampled_from([*meant * 6, *sorted(metadata)]))
            if kind == "json" and metadata[key][:1] in ("{", "["):
                metadata[key] = draw(inside(metadata[key]))
            else:
                metadata[key] = draw(TEXTS)
        elif kind == "tensor" and entries:
            field = draw(st.sampled_from(["dtype", "shape", "shape", "data_offsets"]))
            values = {"dtype": DTYPES, "shape": SHAPES, "data_offsets": OFFSETS}
            header[draw(st.sampled_from(entries))] |= {field: draw(values[field])}
        elif kind == "name" and entries:
            header[draw(NAMES)] = header.pop(draw(st.sampled_from(entries)))
        elif kind == "value":
            tensors = with_value(tensors, draw(st.integers(0, 100)), draw(VALUES))
        elif kind == "drop":
            header.pop(draw(st.sampled_from([*header, "x"])), None)
    whole = joined(header, tensors)
    return draw(damaged(whole)) if draw(st.integers(0, 3)) == 3 else whole


@st.composite
def inside(draw: st.DrawFn, text: str) -> str:
    """JSON with one of its parts replaced, taken away or wrapped; JSON inside of JSON counts as its parts."""
    try:
        root = json.loads(text)
    except (ValueError, RecursionError):
        return text
    at, place = [root], None
    while isinstance(at[-1], dict | list) and at[-1] and (place is None or draw(st.integers(0, 3))):
        place = draw(st.sampled_from(sorted(at[-1]) if isinstance(at[-1], dict) else range(len(at[-1]))))
        at.append(at[-1][place])
    if place is None:
        return draw(TEXTS)
    kind = draw(st.sampled_from(["number", "junk", "text", "drop", "name"]))
    if kind == "drop" or (kind == "name" and isinstance(at[-2], list)):
        del at[-2][place]
    elif kind == "name":
        at[-2][draw(st.sampled_from(["-1", "1e999", "Infinity", "1.0", "01", "9" * 5_000, "²", "", "x"]))] = at[-2].pop(
            place
        )
    elif isinstance(at[-1], str) and at[-1][:1] == "{" and kind != "number":
        at[-2][place] = draw(inside(at[-1]))
    else:
        at[-2][place] = draw({"number": NUMBERS, "junk": JUNK, "text": TEXTS}[kind])
    return json.dumps(root)


def timelines() -> st.SearchStrategy[bytes]:
    return mutated(VALID_TIMELINE)


def checkpoints() -> st.SearchStrategy[bytes]:
    return mutated(VALID_CHECKPOINT)


def play(path: Path) -> dict[int, Coefficients]:
    """As the page and a run that goes on read a timeline."""
    found, losses, validation = load_timeline(path), load_losses(path), load_validation(path)
    assert all(step >= 0 for step in (*found, *validation))
    assert all(map(math.isfinite, (*losses, *validation.values())))
    assert best_step(validation) in (None, *validation)
    return found


def resume(path: Path) -> Checkpoint:
    """As a run that goes on reads a checkpoint; what could be read can learn."""
    parameters, optimizer = parts()
    found = Checkpoint.load(path)
    found.restore(IDENTITY, parameters, optimizer)
    learn(parameters, optimizer)
    return found


def read_timeline(path: Path) -> dict[int, Coefficients] | CoefficientsError:
    """What `play` gives, or its error."""
    try:
        return play(path)
    except CoefficientsError as error:
        return one_line(error)


def read_checkpoint(path: Path) -> Checkpoint | CheckpointError:
    """What `resume` gives, or its error."""
    try:
        return resume(path)
    except CheckpointError as error:
        return one_line(error)


def one_line(error: Any) -> Any:
    """The error, if a user can read it."""
    text = str(error)
    assert len(text) < 1_500, text
    assert "\n" not in text, text
    return error
