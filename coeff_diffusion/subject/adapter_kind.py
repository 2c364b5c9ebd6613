"""What kinds of adapters can learn with a subject, and how people write them; see `adapter_methods`."""

import json
import re
from typing import NamedTuple

from .adapter_methods import LORA_FILE, PEFT_FILE, PREFIXES, REGISTRY, Method, Shapes, Sides
from .errors import CoefficientsError, shown

METHODS = tuple(REGISTRY)
MAX_RANK = 64
MAX_SIDE = 2**16  # channels of a projection
WRITTEN = re.compile(r"([a-z0-9]+)(?::([1-9]\d{0,3}))?", re.ASCII)


class AdapterKind(NamedTuple):
    """What kind of adapter it is, as people write it: `lora:4`, or `ia3`, which has no rank."""

    method: str
    rank: int = 0

    def __str__(self) -> str:
        return f"{self.method}:{self.rank}" if self.about.ranked else self.method

    @classmethod
    def parse(cls, text: str) -> "AdapterKind":
        """Read `lora:4` or `ia3`.

        Raises:
            CoefficientsError: there is no such method, or the rank is out of bounds, missing or one too many.
        """
        found = WRITTEN.fullmatch(text)
        kind = cls(found[1], int(found[2] or 0)) if found and found[1] in REGISTRY else None
        if kind is None or not (1 <= kind.rank <= MAX_RANK if kind.about.ranked else kind.rank == 0):
            ranked = [f"{name}:RANK" for name in METHODS if REGISTRY[name].ranked]
            others = [name for name in METHODS if not REGISTRY[name].ranked]
            raise CoefficientsError(
                f"the adapter {shown(text)} is not known; expected {', '.join(ranked)} with a rank of 1 to {MAX_RANK}, "
                f"such as lora:4, or {' or '.join(others)} without one"
            )
        return kind

    @property
    def about(self) -> Method:
        """What there is to know of the method."""
        return REGISTRY[self.method]

    @property
    def file(self) -> str:
        """How its file is called beside a subject."""
        return self.about.file

    @property
    def prefix(self) -> str:
        """What stands before a projection in the names of the tensors in its file."""
        return PREFIXES[self.file]

    @property
    def loaded_by(self) -> str:
        """How others load the folder, as Python; empty where none do."""
        folder = '"the/folder/of/both"'
        if self.file == PEFT_FILE:
            return f"peft.PeftModel.from_pretrained(pipe.unet, {folder})"
        return f"pipe.load_lora_weights({folder})" if self.file == LORA_FILE else ""

    def shapes(self, out: int, into: int) -> Shapes:
        """The tensors of a projection of so many channels, by name."""
        return self.about.shapes(self.rank, out, into)

    def sides(self, shapes: Shapes) -> Sides | None:
        """The channels of the projection that has tensors of these shapes; None if they are not of this kind."""
        try:
            out, into = self.about.sides(shapes)
        except (KeyError, IndexError):
            return None
        bounded = all(1 <= side <= MAX_SIDE for side in (out, 1 if into is None else into))
        return (out, into) if bounded and self.shapes(out, into or 0) == shapes else None

    def peft_config(self) -> bytes:
        """The `adapter_config.json` that tells PEFT what lies beside it; empty where it is not in PEFT's form.

        The same for every base: PEFT finds the projections by the ends of their paths.
        """
        if self.file != PEFT_FILE:
            return b""
        rank = {"r": self.rank, "alpha": self.rank} if self.about.ranked else {}
        config = {**self.about.peft, **rank, "target_modules": list(self.about.projections), "inference_mode": True}
        return json.dumps(config, indent=2, sort_keys=True).encode() + b"\n"
