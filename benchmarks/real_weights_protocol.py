"""What the protocol of PEFT's image generation benchmark asks for, read from its own file, and the pictures it needs.

The protocol is `method_comparison/image-gen` of https://github.com/huggingface/peft: its settings, captions and prompts
stand in the file `default_training_params.json` there, which is read as it is.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_type_hints

import numpy as np
from fidelity_settings import BenchmarkError
from PIL import Image

from coeff_diffusion.images.photo import read_image
from coeff_diffusion.subject.user_file import read_text, user_path
from coeff_diffusion.training.picture_folder import find_pictures

MAX_FILE = 2**20  # bytes
SOURCE = (
    "--protocol is default_training_params.json of method_comparison/image-gen in https://github.com/huggingface/peft"
)
PRECISIONS: dict[str, Literal["no", "fp16", "bf16"]] = {"float32": "no", "float16": "fp16", "bfloat16": "bf16"}


@dataclass(frozen=True)
class Protocol:
    """The settings of the protocol that mean something here, by the names they have there.

    Attributes:
        whole: all that the file says, with what was changed: what a result records.
    """

    model_id: str
    dataset_id: str
    dataset_split: str
    image_column: str
    dtype: str
    resolution: int
    batch_size: int
    max_steps: int
    eval_steps: int
    use_gc: bool
    seed: int
    grad_norm_clip: float
    optimizer_kwargs: dict[str, Any]
    valid_size: int
    test_size: int
    num_inference_steps: int
    guidance_scale: float
    dino_model_id: str
    instance_prompts: list[str]
    drift_image_prompts: list[str]
    sample_image_prompts: list[str]
    whole: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, path: str, changes: Mapping[str, Any]) -> "Protocol":
        """The file with some settings changed; None changes nothing.

        Raises:
            BenchmarkError: it cannot be read, a setting is missing, of another type, or makes no sense.
        """
        if not path:
            raise BenchmarkError(f"{SOURCE}; give the path of your copy")
        try:
            whole = json.loads(read_text(user_path(path), MAX_FILE, BenchmarkError))
        except ValueError as error:
            if isinstance(error, BenchmarkError):
                raise
            raise BenchmarkError(f"{path} is no JSON ({error}); {SOURCE}") from error
        if not isinstance(whole, dict):
            raise BenchmarkError(f"{path} holds no settings; {SOURCE}")
        whole |= {name: value for name, value in changes.items() if value is not None}
        types = get_type_hints(cls)
        names = [item.name for item in fields(cls) if item.name != "whole"]
        wrong = [f"{name} is missing" for name in names if name not in whole]
        wrong += [
            f"{name} is {whole[name]!r}, expected {types[name].__name__}"
            for name in names
            if name in whole and not _is_a(whole[name], types[name])
        ]
        if wrong:
            raise BenchmarkError(f"{path}: {'; '.join(wrong[:3])}; {SOURCE}")
        found = cls(**{name: whole[name] for name in names}, whole=whole)
        found._check(path)
        return found

    def _check(self, path: str) -> None:
        least = {"resolution": 8, "batch_size": 1, "max_steps": 1, "eval_steps": 1, "valid_size": 1, "test_size": 1}
        wrong = [
            f"{name} is {getattr(self, name)}, expected at least {low}"
            for name, low in least.items()
            if getattr(self, name) < low
        ]
        if self.dtype not in PRECISIONS:
            wrong.append(f"dtype is {self.dtype!r}, expected one of {', '.join(PRECISIONS)}")
        if len(self.instance_prompts) <= self.valid_size + self.test_size:
            wrong.append(
                f"of {len(self.instance_prompts)} pictures {self.valid_size} are for validation and {self.test_size} "
                "for the test, so that none is left to train on"
            )
        if wrong:
            raise BenchmarkError(f"{path}: {'; '.join(wrong)}")


def _is_a(value: Any, kind: Any) -> bool:
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if getattr(kind, "__origin__", None) is list:
        return isinstance(value, list) and all(isinstance(one, str) for one in value)
    origin = getattr(kind, "__origin__", kind)
    return isinstance(value, origin) and (kind is bool or not isinstance(value, bool))


@dataclass(frozen=True)
class Example:
    """A picture and its caption."""

    picture: Image.Image
    prompt: str


@dataclass(frozen=True)
class Split:
    """The pictures, as the protocol divides them."""

    train: list[Example]
    valid: list[Example]
    test: list[Example]

    def write_training(self, folder: Path, resolution: int) -> None:
        """The training pictures, squeezed into squares as the protocol does it, each with its caption beside it."""
        folder.mkdir(parents=True, exist_ok=True)
        for number, one in enumerate(self.train):
            square = one.picture.resize((resolution, resolution), Image.Resampling.BILINEAR)
            square.save(folder / f"{number:02d}.png")
            (folder / f"{number:02d}.txt").write_text(one.prompt, encoding="utf-8")


def read_pictures(protocol: Protocol) -> Split:
    """The data set of the protocol, a folder of pictures in the order of their names, or a data set of the Hub.

    Raises:
        BenchmarkError: it is not there, cannot be read without a package that is missing, or does not fit the captions.
    """
    source = user_path(protocol.dataset_id)
    pictures = [read_image(path) for path in find_pictures(source).paths] if source.is_dir() else _of_hub(protocol)
    if len(pictures) != len(protocol.instance_prompts):
        raise BenchmarkError(
            f"{protocol.dataset_id} holds {len(pictures)} pictures, and the protocol has captions of "
            f"{len(protocol.instance_prompts)}; take the data set that it was written for"
        )
    examples = [
        Example(picture.convert("RGB"), prompt)
        for picture, prompt in zip(pictures, protocol.instance_prompts, strict=True)
    ]
    order = np.arange(len(examples))
    np.random.RandomState(0).shuffle(order)  # the protocol's own, whatever its seed of training
    mixed = [examples[number] for number in order]
    test = len(mixed) - protocol.test_size
    return Split(mixed[: test - protocol.valid_size], mixed[test - protocol.valid_size : test], mixed[test:])


def _of_hub(protocol: Protocol) -> Sequence[Image.Image]:
    try:
        from datasets import load_dataset
    except ModuleNotFoundError as error:
        raise BenchmarkError(
            f"the data set {protocol.dataset_id} is no folder here, and reading it from the Hub needs: pip install "
            "datasets; or give a folder of its pictures with --dataset"
        ) from error
    try:
        rows = load_dataset(protocol.dataset_id, split=protocol.dataset_split)
        return list(rows[protocol.image_column])
    except Exception as error:  # it raises whatever its parts do: no network, no such set, no such column
        said = " ".join(str(error).split())[:200]
        raise BenchmarkError(f"the data set {protocol.dataset_id} cannot be read: {said}") from error
