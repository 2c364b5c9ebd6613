"""`coeff-diffusion info`: what a subject's file, or a picture, says about itself, for people or as JSON.

All of it may come from strangers: nothing that is shown can steer the terminal.
"""

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from ..images.drawing_facts import drawing_facts, in_words
from ..images.files import find_drawing
from ..images.generation_info import PictureError
from ..sources.open import extract_any, locate, picture_kind, read, with_adapter_from_hub
from ..subject.coefficients import Coefficients
from ..subject.errors import cut
from ..subject.file_kind import kind_of_file
from ..subject.info import not_learned
from ..subject.places import text_encoder_of
from ..subject.printable import printable
from .config import InfoConfig

MOST_SHOWN = 300  # characters of a text; JSON has all of it
MOST_BLOCKS = 16  # rows of the table; Stable Diffusion has 9 blocks
BLOCK = re.compile(r"(down|up)_blocks\.\d+|mid_block")
KINDS = {"attn1": "self", "attn2": "cross"}
WORDS = {"text": "of the text encoder"}
Facts = dict[str, Any]


def show_info(config: InfoConfig, say: Callable[[str], None] = print) -> None:
    """Say what `config.file` carries.

    Args:
        say: gets the lines for people as one text, or the JSON.

    Raises:
        CoefficientsError, PictureError: the file is not what its name says, or a picture carries nothing.
    """
    facts = collect_facts(config.file)
    # JSON escapes all beyond ASCII, and of ASCII's control characters all but the last.
    say(json.dumps(facts).replace("\x7f", "\\u007f") if config.json else _page(facts))


def collect_facts(source: str | Path) -> Facts:
    """All that `info` shows, as plain data under the keys that docs/commands.md lists."""
    path = locate(source)
    if picture_kind(path):
        return picture_facts(path)
    subject = with_adapter_from_hub(read(path), source)
    return subject_facts(subject, path.stat().st_size)


def subject_facts(subject: Coefficients, size: int) -> Facts:
    """Facts about a subject that takes `size` bytes."""
    by_block: dict[str, dict[str, list[float]]] = {}
    layers = {"self": 0, "cross": 0, "text": 0, "other": 0}
    for path, coeff in subject.items():
        encoder, found = text_encoder_of(path), BLOCK.match(path)
        kind = "text" if encoder else KINDS.get(path.rpartition(".")[2], "other")
        block = encoder or (found[0] if found else path.partition(".")[0])
        layers[kind] += 1
        by_block.setdefault(block, {}).setdefault(kind, []).append(float(coeff.norm()))
    norms = {block: {kind: math.hypot(*parts) for kind, parts in kinds.items()} for block, kinds in by_block.items()}
    return {
        "kind": "subject",
        "info": {item.name: getattr(subject.info, item.name) for item in fields(subject.info)},
        "layers": layers,
        "heads": sorted({len(coeff) for coeff in subject.values()}),
        "coefficients": sum(coeff.numel() for coeff in subject.values()),
        "norm": math.hypot(*(norm for kinds in norms.values() for norm in kinds.values())),
        "norms": norms,
        "tokens": {
            owner: {"vectors": token.shape[0], "width": token.shape[1], "norm": float(token.norm())}
            for owner, token in subject.tokens.items()
        },
        "stage_tokens": {
            stage: {"vectors": token.shape[0], "width": token.shape[1], "norm": float(token.norm())}
            for stage, token in subject.stage_tokens.items()
        },
        "adapter": _adapter(subject),
        "quantized": _quantized(subject.info.extra.get("quantized")),
        "size": size,
        "sha256": subject.sha256,
    }


def _adapter(subject: Coefficients) -> Facts | None:
    """The adapter that a subject learned with; without `values` and `size` it is not there."""
    if not subject.info.adapter:
        return None
    facts: Facts = {
        "kind": subject.info.adapter,
        "file": subject.info.adapter_file,
        "sha256": subject.info.adapter_sha256,
    }
    if subject.adapter is not None:
        facts |= {"values": subject.adapter.values, "size": len(subject.adapter.data)}
    return facts


def picture_facts(path: Path) -> Facts:
    """How a picture was drawn, and the subjects it carries: in it as a card, or to be seen on it as a QR code."""
    kind, drawn = kind_of_file(path, PictureError), None
    subjects = extract_any(path)
    if kind.picture == "PNG":
        drawn = _drawn(path, optional=bool(subjects))
    if not subjects and drawn is None:
        subjects = _from_qr(path)  # last, for it looks at every pixel
    if not subjects and drawn is None:
        alone = "" if kind.picture == "PNG" else "; the first two are in PNG files alone"
        raise PictureError(
            f"{path} is {kind.name} that carries neither drawing parameters nor a subject and shows no QR code{alone}"
        )
    return {
        "kind": "picture",
        "parameters": drawn,
        "subjects": [subject_facts(subject, len(subject.to_bytes())) for subject in subjects],
        "size": path.stat().st_size,
    }


def _drawn(path: Path, optional: bool) -> Facts | None:
    """The drawing parameters. Those that make no sense are an error, unless there is something else to show."""
    try:
        found = find_drawing(path)
        return drawing_facts(found) if found else None
    except PictureError:
        if optional:
            return None
        raise


def _from_qr(path: Path) -> list[Coefficients]:
    from ..sources.qr_code import read_qr

    found = read_qr(path)
    return [] if found is None else [found]


def _quantized(found: Any) -> Facts | None:
    """What the reader of QR codes notes of its rounding; a stranger's file may have anything in its place."""
    if isinstance(found, Mapping) and type(found.get("bits")) is int and type(found.get("largest_error")) is float:
        return {key: found[key] for key in ("bits", "largest_error")}
    return None


# --- for people -------------------------------------------------------------------------------------------------------


def _page(facts: Facts) -> str:
    if facts["kind"] == "subject":
        return _subject_page(facts)
    parts = [_lines(in_words(facts["parameters"]))] if facts["parameters"] else []
    if carried := facts["subjects"]:
        parts.append(f"This picture carries {'a subject' if len(carried) == 1 else f'{len(carried)} subjects'}:")
    return "\n\n".join([*parts, *map(_subject_page, carried)])


def _subject_page(facts: Facts) -> str:
    info, layers, heads, rounded = facts["info"], facts["layers"], facts["heads"], facts["quantized"]
    trained = {
        "train_steps": "{} steps",
        "resolution": "{0} x {0} pixels",
        "seed": "seed {}",
        "final_loss": "loss {:.4g} at the end",
    }
    revision = f", revision {info['base_revision']}" if info["base_revision"] else ""
    kinds = ", ".join(f"{count} {WORDS.get(kind, kind)}" for kind, count in layers.items() if count)
    shown = {
        "subject": info["name"],
        "trigger": info["trigger"],
        "class word": info["class_word"],
        "acts on": "prompts with the trigger" if info["gate"] == "trigger" and info["trigger"] else "every prompt",
        "base": f"{info['base_model'] or 'unknown'} ({info['base_architecture'] or 'unknown family'}{revision})",
        "instance prompt": info["instance_prompt"],
        "class prompt": info["class_prompt"],
        "trained": ", ".join(text.format(info[key]) for key, text in trained.items() if info[key] is not None),
        "trained with": info["trained_with"],
        "effect": None if info["effect"] is None else f"changes the base's predictions by {info['effect']:.1%}",
        "not learned": not_learned(info["strangeness"]) or None,
        "layers": f"{sum(layers.values())} ({kinds or 'none'})"
        + (f", those of {', '.join(info['blocks'])}" if info["blocks"] else ""),
        "coefficients": f"{facts['coefficients']:,} ({' or '.join(map(str, heads))} heads)" if heads else None,
        **{
            f"token of {owner}": f"{token['vectors']} x {token['width']}, norm {token['norm']:.4f}"
            for owner, token in facts["tokens"].items()
        },
        "stage tokens": _stages(facts["stage_tokens"]),
        "adapter": _adapter_line(facts["adapter"]),
        "rounded": rounded
        and f"to {rounded['bits']} bits, no number is off by more than {rounded['largest_error']:.2g}",
        "licence": info["license"],
        "created": info["created"],
        "size": f"{facts['size']:,} bytes",
        "hash": facts["sha256"],
    }
    return "\n\n".join(filter(None, [_lines(shown), _table(facts["norms"], facts["norm"])]))


def _adapter_line(adapter: Facts | None) -> str | None:
    if adapter is None:
        return None
    there = "NOT THERE: draw with it beside the subject's file"
    if "values" in adapter:
        there = f"{adapter['values']:,} values, {adapter['size']:,} bytes"
    return f"{adapter['kind']}, {adapter['file']} (SHA-256 {adapter['sha256'][:12]}...), {there}"


def _stages(tokens: Mapping[str, Mapping[str, float]]) -> str | None:
    """What the stages add to the text, on one line."""
    norms = ", ".join(f"{stage} {token['norm']:.2f}" for stage, token in tokens.items())
    return (norms and f"{len(tokens)}, norms {norms}") or None


def _table(norms: Mapping[str, Mapping[str, float]], total: float) -> str:
    """The norms of the coefficients by block and kind of layer, aligned; empty without coefficients."""
    if not norms:
        return ""
    kinds = [kind for kind in ("self", "cross", "text", "other") if any(kind in found for found in norms.values())]
    rows = [
        [cut(block, 40), *(f"{found[kind]:.4f}" if kind in found else "-" for kind in kinds)]
        for block, found in list(norms.items())[:MOST_BLOCKS]
    ]
    rows = [["norm by block", *kinds], *rows, ["all", f"{total:.4f}"]]
    if len(norms) > MOST_BLOCKS:
        rows.insert(-1, [f"({len(norms) - MOST_BLOCKS} more blocks)"])
    width = max(len(row[0]) for row in rows)
    return "\n".join(f"{row[0]:<{width}}" + "".join(f"{cell:>10}" for cell in row[1:]) for row in rows)


def _lines(facts: Mapping[str, object]) -> str:
    shown = {
        printable(cut(key, 40)): printable(cut(str(value), MOST_SHOWN))
        for key, value in facts.items()
        if value not in (None, "")
    }
    width = max(map(len, shown), default=0)
    return "\n".join(f"{key:<{width}}  {value}" for key, value in shown.items())
