"""Pictures of other programs whose texts are damaged, odd, or meant to break who reads them."""

import copy
import json
from typing import Any

from hypothesis import strategies as st
from mutated_files import JUNK
from other_programs import TEXTS, picture

DEEP: Any = "deep"  # stands for JSON that is nested deeper than anybody reads
VALUES = st.one_of(
    JUNK,
    st.sampled_from([
        10**400, -1, 2**64 - 1, 1e308, float("nan"), float("inf"), "9" * 5_000, "1e999", "x" * 20_000, "\ud800",
        "<lora:x:1>", ["3", 0], ["10", 0], [3, 0], [None, None], {"inputs": {}}, {"class_type": "KSampler"}, DEEP,
    ]),
)  # fmt: skip
NAMES = st.sampled_from(
    ["seed", "steps", "prompt", "text", "positive", "negative", "model", "latent_image", "sampler_name", "scheduler",
     "width", "inputs", "class_type", "nodes", "links", "image", "sui_image_params", "Subjects", "Gate", "Exact prompt",
     "Subject hashes", "Base hash", "Size", "", "\ud800", "x" * 200]
)  # fmt: skip


@st.composite
def drawings(draw: st.DrawFn) -> bytes:
    """A PNG whose texts are those of another program after a few mutations."""
    texts = copy.deepcopy(TEXTS[draw(st.sampled_from(sorted(TEXTS)))])
    for _ in range(draw(st.integers(0, 4))):
        key = draw(st.sampled_from(sorted(texts)))
        if isinstance(texts[key], dict):
            _mutate(draw, texts[key])
        elif isinstance(texts[key], str):
            text, at = texts[key], draw(st.integers(0, len(texts[key])))
            junk = draw(st.one_of(st.text(max_size=8), VALUES.map(_json), st.sampled_from([", Size: 3", "\n", '"'])))
            texts[key] = draw(
                st.sampled_from([text[:at], text[:at] + junk + text[at:], f"{text}, Steps: {junk}", junk])
            )
    written = {key: value if isinstance(value, str) else _json(value) for key, value in texts.items()}
    if draw(st.integers(0, 9)) == 0:  # broken off
        key = draw(st.sampled_from(sorted(written)))
        written[key] = written[key][: draw(st.integers(0, len(written[key])))]
    if draw(st.integers(0, 9)) == 0:  # under another program's name
        written["parameters"] = draw(st.sampled_from(sorted(written.values())))
    return picture({key: text.encode("utf-8", "replace").decode() for key, text in written.items()})


def _mutate(draw: st.DrawFn, data: Any) -> None:
    """Change one thing in an object of JSON, at any depth."""
    while True:
        inner = [
            value for value in (data.values() if isinstance(data, dict) else data) if isinstance(value, dict | list)
        ]
        if not inner or draw(st.booleans()):
            break
        data = draw(st.sampled_from(inner))
    if isinstance(data, list):
        data.insert(draw(st.integers(0, len(data))), copy.deepcopy(draw(VALUES)))
        return
    keys = [*data, draw(NAMES)]
    kind, key = draw(st.sampled_from(["change", "drop", "rename"])), draw(st.sampled_from(keys))
    if kind == "drop":
        data.pop(key, None)
    elif kind == "rename" and key in data:
        data[draw(NAMES)] = data.pop(key)
    else:
        data[key] = copy.deepcopy(draw(VALUES))  # it may be mutated, too


def _json(value: Any) -> str:
    deep = "[" * 50_000 + "]" * 50_000
    return json.dumps(value).replace(f'"{DEEP}"', deep)
