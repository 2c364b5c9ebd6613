"""What the texts in a PNG say of how it was drawn, whichever program wrote them.

| program | chunk | form |
| --- | --- | --- |
| this one, A1111, Forge, SD.Next, Fooocus on demand | `parameters` | lines (`generation_info`) |
| SwarmUI | `parameters` | JSON under `sui_image_params` |
| Fooocus | `parameters` | JSON |
| ComfyUI | `prompt`, or `workflow` alone | a graph in JSON (`comfy_graph`) |
| InvokeAI | `invokeai_metadata`, before that `sd-metadata`, before that `Dream` | JSON, or a command line |
| NovelAI | `Comment` | JSON |

Each is brought into the fields of A1111's form; one table tells which of their keys mean the same. What is left has no
counterpart here and is named.
"""

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from .comfy_graph import read_graph, read_workflow
from .generation_info import FIELD, OURS, Parameters, PictureError, from_fields, parse_parameters
from .left_out import folded

PROMPT, NEGATIVE = "Prompt", "Negative prompt"
SAME = {
    PROMPT: ("prompt", "positiveprompt", "positive"),
    NEGATIVE: ("negativeprompt", "negative", "uc"),
    "Steps": ("steps", "numinferencesteps"),
    "Sampler": ("sampler", "samplername", "comfyuisampler"),
    "Schedule type": ("scheduler", "schedulername", "comfyuischeduler", "noiseschedule"),
    "CFG scale": ("cfgscale", "cfg", "guidancescale", "scale"),
    "Guidance rescale": ("cfgrescale", "cfgrescalemultiplier", "guidancerescale"),
    "Seed": ("seed", "noiseseed"),
    "Size": ("size", "resolution"),
    "width": ("width",),
    "height": ("height",),
    "Model": ("model", "modelname", "basemodel", "basemodelname", "modelweights"),
}
"""Our key, or A1111's -> those of programs that write JSON, folded."""
KEYS = {name: key for key, names in SAME.items() for name in names}
OF_INVOKE = {**KEYS, "scheduler": "Sampler"}
OF_DREAM = {"s": "Steps", "S": "Seed", "W": "width", "H": "height", "C": "CFG scale", "A": "Sampler"}
DREAM = re.compile(r'\s*(?:"((?:[^"\\]|\\.)*+)"|((?:(?! -).)*+))(.*)', re.DOTALL)
JSON = re.compile(r'\{\s*"|[\[{][^\n]{0,2000}"\s*:|[\[{]\s*\n\s*[\[{"]')  # as no prompt begins
FLAG = re.compile(r"(?<!\S)--?([A-Za-z]\w{0,40})[ =]?((?:(?! -).){0,200})")


def read_drawing(text_of: Callable[[str], str | None]) -> Parameters | None:
    """The parameters that the texts of a picture give; None where none of them says how it was drawn.

    Args:
        text_of: gives the text of a keyword in the PNG.

    Raises:
        PictureError: one says so, but not in a way that can be read.
    """
    for keyword, read in READERS.items():
        try:
            if (text := (text_of(keyword) or "").strip()) and (found := read(text)) is not None:
                return found
        except RecursionError as error:
            raise PictureError(f"the picture's text {keyword!r} cannot be read: it is nested too deeply") from error
    return None


def _parameters(text: str) -> Parameters | None:
    data = _object(text)
    if data is not None:
        inner = data.get("sui_image_params")
        return _from_json(inner if isinstance(inner, dict) else data)
    if JSON.match(text) and len(FIELD.findall(text.rpartition("\n")[2])) < 3:
        raise PictureError("the picture's parameters cannot be read: they are damaged JSON")
    return parse_parameters(text)


def _invoke(text: str) -> Parameters | None:
    data = _object(text)
    if data is None:
        raise PictureError("the picture's parameters cannot be read: InvokeAI's are damaged JSON")
    if isinstance(image := data.get("image"), dict):  # as `sd-metadata` has it
        data = {**{key: data[key] for key in ("model_weights", "model_hash") if key in data}, **image}
    return _from_json(data, OF_INVOKE)


def _dream(text: str) -> Parameters | None:
    if JSON.match(text):
        return None
    parts = DREAM.fullmatch(text)
    assert parts  # it takes any text
    quoted, plain, rest = parts.groups()
    prompt = plain.strip() if quoted is None else re.sub(r"\\(.)", r"\1", quoted)
    fields = {OF_DREAM.get(flag, flag): value.strip() for flag, value in FLAG.findall(rest)}
    return _sized(prompt, "", fields, [])


def _comment(text: str) -> Parameters | None:
    """Comments may say anything; NovelAI's say what to draw and in how many steps."""
    data = _object(text)
    return _from_json(data) if data and {"prompt", "steps"} <= data.keys() else None


def _graph(text: str, read: Callable[[Any], tuple[dict[str, str], list[str]] | None]) -> Parameters | None:
    data = _object(text)
    found = None if data is None else read(data)  # other programs have plain words under this keyword
    if found is None:
        return None
    fields, notes = found
    return _sized(fields.pop(PROMPT, ""), fields.pop(NEGATIVE, ""), fields, notes)


READERS: dict[str, Callable[[str], Parameters | None]] = {
    "parameters": _parameters,
    "invokeai_metadata": _invoke,
    "sd-metadata": _invoke,
    "Dream": _dream,
    "prompt": lambda text: _graph(text, read_graph),
    "workflow": lambda text: _graph(text, read_workflow),
    "Comment": _comment,
}
"""By keyword; the first text that says how the picture was drawn counts."""


# --- JSON -------------------------------------------------------------------------------------------------------------


def _object(text: str) -> dict[str, Any] | None:
    """The JSON object that a text is as a whole; None where it is none."""
    try:
        data = json.loads(text) if text.startswith("{") else None
    except (ValueError, RecursionError):
        return None
    return data if isinstance(data, dict) else None


def _from_json(data: Mapping[str, Any], keys: Mapping[str, str] = KEYS) -> Parameters:
    """The parameters of a flat object, whatever its keys are called."""
    fields: dict[str, str] = {}
    notes: list[str] = []
    for key, value in data.items():
        name = keys.get(folded(key), key)
        text = _words(value) if name in (PROMPT, NEGATIVE) else _name(value) if name == "Model" else _text(value)
        if text is None:
            notes.append(f"its {key[:40]} is not text, so it is left out")
        elif not (name in SAME and fields.get(name)):  # the first of several that mean the same
            fields[name] = text
    if not fields.keys() & SAME.keys():
        raise PictureError("the picture's parameters cannot be read: they are JSON of a program that is not known here")
    return _sized(fields.pop(PROMPT, ""), fields.pop(NEGATIVE, ""), fields, notes)


def _sized(prompt: str, negative: str, fields: dict[str, str], notes: list[str]) -> Parameters:
    width, height = fields.pop("width", ""), fields.pop("height", "")
    if width and height:
        fields["Size"] = f"{width}x{height}"
    damaged = [text for text in (prompt, negative, *fields, *fields.values()) if "\ufffd" in _sound(text)]
    if damaged and not any("\ufffd" in text for text in damaged):
        notes.append("some of its letters are damaged and read as \ufffd")
    fields = {_sound(key): _sound(value) for key, value in fields.items() if value}
    for key in OURS & fields.keys():  # whatever another program means by it
        notes.append(f"its {key} is left out")
        del fields[key]
    return from_fields(_sound(prompt), _sound(negative), fields, tuple(notes))


def _sound(text: str) -> str:
    """Half of a surrogate pair, which JSON can spell, is no text that a tokenizer could read."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    return "" if value is None else json.dumps(value, ensure_ascii=False)


def _name(value: Any) -> str:
    """Of a model, which some programs describe by several fields."""
    if isinstance(value, dict):
        value = next((value[key] for key in ("model_name", "name") if isinstance(value.get(key), str)), None)
    return _text(value)


def _words(value: Any) -> str | None:
    """A prompt, which some programs write in parts; None where it is no text."""
    if isinstance(value, list):
        parts = [_words(part) for part in value]
        return None if None in parts else ", ".join(part for part in parts if part)
    if isinstance(value, dict):
        value = value.get("prompt")
    return value if isinstance(value, str) else None if value is not None else ""
