"""How a picture was drawn, read back from its file, so that it can be drawn again.

On one machine and with the same packages the CPU draws the same bits again. `recorded` has what is written down.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

from ..images.control_picture import ControlPicture
from ..images.files import read_parameters
from ..images.generation_info import Parameters, PictureError
from ..images.left_out import left_out
from ..images.start_picture import StartPicture
from ..sources.image_card import called, extract
from ..subject.coefficients import Coefficients
from ..subject.errors import shown
from ..subject.user_file import user_path
from .recorded import Base as Base  # a part of what this module offers
from .request import DrawRequest, RefinerName, StudioError
from .upscaling import LANCZOS, Upscaler

MAX_BATCH = 64
"""Pictures that one batch of a picture from a stranger may have had."""


@dataclass(frozen=True)
class Part:
    """A subject that is to take part in a drawing.

    Attributes:
        name: what to call it there; None is what it calls itself.
        strength: None is the picture's, or 1.
        source: how the user named it; empty where a picture carries it.
    """

    subject: Coefficients
    name: str | None = None
    strength: float | None = None
    source: str = ""

    def __str__(self) -> str:
        return f"{self.source} is {called(self.subject)}" if self.source else called(self.subject)


@dataclass(frozen=True)
class Replay:
    """What a picture says about itself.

    Attributes:
        parameters: how it was drawn.
        carried: the subjects in it.
        start: the picture in it that it was drawn from.
        control: the picture in it that it was held to; its ControlNet is the one that the picture records.
    """

    path: Path
    parameters: Parameters
    carried: Sequence[Coefficients]
    start: StartPicture | None = None
    control: ControlPicture | None = None

    @classmethod
    def read(cls, path: str | Path) -> "Replay":
        """Read a picture.

        Raises:
            PictureError: not a PNG, damaged, or it does not say how it was drawn.
            CoefficientsError: a subject in it is damaged.
        """
        path = user_path(path)
        return cls.of(path, read_parameters(path), extract(path))

    @classmethod
    def of(
        cls, path: Path, parameters: Parameters, carried: Sequence[Coefficients], name: Path | None = None
    ) -> "Replay":
        """The rest of what a picture says, read from its file.

        Args:
            name: what sentences call it.

        Raises:
            PictureError: a picture in it is damaged, or another than it says.
        """
        control = ControlPicture.read(path)
        if control is not None:
            net, digits = parameters.controlnet or "", parameters.controlnet_hash or ""
            control = replace(control, net=net, net_digits=digits)
        return cls(name or path, parameters, carried, StartPicture.read(path), control)

    def __post_init__(self) -> None:
        if self.start is not None and self.start.digits != self.parameters.start_digits:
            raise PictureError(f"{self.path} carries another picture to start from than it says it was drawn from")
        if self.control is not None and self.control.digits != self.parameters.control_digits:
            raise PictureError(f"{self.path} carries another control picture than it says it was held to")

    @property
    def lacks_start(self) -> bool:
        """Whether it was drawn from a picture that it does not carry."""
        return self.parameters.start_digits is not None and self.start is None

    @property
    def lacks_control(self) -> bool:
        """Whether it was held to a picture that it does not carry."""
        return self.parameters.control_digits is not None and self.control is None

    @property
    def controlnet(self) -> str:
        """What its ControlNet is called in sentences."""
        name, digits = self.parameters.controlnet or "without a name", self.parameters.controlnet_hash
        return f"the ControlNet {shown(name)} ({digits or 'its hash is not recorded'})"

    @property
    def refiner(self) -> RefinerName | None:
        """The refiner that finished it; None where there was none, or another program does not tell it from others."""
        name, digits = self.parameters.refiner_name, self.parameters.refiner_hash
        return RefinerName(name, digits) if name and digits else None

    def other_refiner(self, refiner: RefinerName) -> str | None:
        """What is wrong with finishing it by this refiner, if it was not the one that did."""
        if self.refiner in (None, refiner) or self.refiner.digits == refiner.digits:
            return None
        return f"{self.path} was finished by {self.refiner}, this is {refiner}"

    def request(self) -> tuple[DrawRequest, int | None]:
        """What to draw, without the subjects, and which picture of the batch is this one; None if it was drawn alone.

        What the picture does not say is as `DrawRequest` has it; guidance is not rescaled then.

        Raises:
            StudioError: its place in its batch cannot be.
        """
        p = self.parameters
        asked = {one.name: getattr(p, one.name) for one in fields(DrawRequest)}
        request = DrawRequest(
            **asked
            | {"guidance_rescale": p.guidance_rescale or 0.0, "subjects": {}, "batch_size": 1}
            | {"start": self.start, "control": self.control, "refiner": self.refiner}
        )
        if self.refiner is None:  # what another program says of one
            request = request.without("refiner")
        size, place = p.batch_size, p.batch_position
        if size == 1 or place is None or p.seed is None:
            return request, None
        if not 0 <= place < size <= MAX_BATCH or place > p.seed:
            raise StudioError(
                f"{self.path} says that it is picture {place} of a batch of {size} with seed {p.seed}; expected at "
                f"most {MAX_BATCH} pictures, counted from 0, and a seed that counts up with them"
            )
        return replace(request, seed=p.seed - place, batch_size=size), place

    @property
    def says_prompt(self) -> bool:
        """Whether there is one; none in a picture of ours was meant so."""
        return bool(self.parameters.prompt) or self.parameters.base_hash is not None

    @property
    def notes(self) -> list[str]:
        """What it does not say, and what it says that is not taken: sentences for the user."""
        p = self.parameters
        words = {
            "seed": "seed",
            "steps": "steps",
            "guidance_scale": "guidance",
            "scheduler": "sampler",
            "width": "size",
        }
        missing = [word for name, word in words.items() if name in p.unsaid or getattr(p, name) is None]
        if not self.says_prompt:
            missing.insert(0, "prompt")
        notes = [f"it does not say its {', '.join(missing)}"] if missing else []
        if p.refiner_name and self.refiner is None:
            notes.append(f"it was finished by the refiner {shown(p.refiner_name)}; without it, it will look different")
        return [*notes, *p.notes, *left_out(p.extra)]

    def other_base(self, base: Base) -> str | None:
        """What is wrong with drawing the picture by this base, if it was not the one that drew it."""
        p = self.parameters
        if p.model is None:
            return f"{self.path} does not say which base it was drawn by; this base is {base.model!r}"
        if p.model != base.model:
            return f"{self.path} was drawn by the base {shown(p.model)}, this base is {base.model!r}"
        if p.base_hash and base.base_hash and p.precision == base.precision and p.base_hash != base.base_hash:
            return (
                f"{self.path} was drawn by {base.model!r} with other weights: its base hash is {shown(p.base_hash)}, "
                f"that of this base {base.base_hash!r}"
            )
        return None

    def other_upscaler(self, upscaler: Upscaler) -> list[str]:
        """A sentence where the picture was made larger by another network than this one, before or after its second
        pass."""
        p, digits = self.parameters, self.parameters.upscaler_hash or ""
        used = {p.hires_upscaler or LANCZOS} if p.has("hires_scale") else set()
        used |= {p.upscaler or LANCZOS} if p.upscale > 1 else set()
        return [
            f"{self.path} was enlarged by {shown(name)} ({digits or 'its hash is not recorded'}), here {upscaler.name} "
            "does it; it will not be the same picture"
            for name in sorted(used)
            if (name, digits) != (upscaler.name, upscaler.digits)
        ]

    def parts(self, given: Sequence[Part]) -> tuple[list[Part], list[str]]:
        """The subjects to draw with, told by the hashes that the picture records, and notes for the user.

        Args:
            given: the user's subjects: what the picture does not carry, the same with another strength, or others in
                place of those that it carries.

        Raises:
            StudioError: the picture was drawn with a subject that is neither carried nor given.
        """
        p, carried = self.parameters, [Part(subject) for subject in self.carried]
        found, missing, notes = [], [], []
        used: list[Part] = []
        for name, strength in p.subjects.items():
            digits = p.hashes.get(name)
            part = _match(given, used, name, digits) or _match(carried, used, name, digits)
            if part is None:
                missing.append(f"{shown(name)} ({digits or 'its hash is not recorded'})")
                continue
            used.append(part)
            found.append(replace(part, name=name, strength=strength if part.strength is None else part.strength))
            if digits is None:
                notes.append(f"{self.path} does not record the hash of {shown(name)}; it is taken that {part}")
        others = [part for part in given if not _among(used, part)]
        if missing:
            what = f"but {', '.join(map(str, others))}" if others else "give the file with --subject"
            raise StudioError(f"{self.path} was drawn with {', '.join(missing)}, which it does not carry; {what}")
        if others:
            before = ", ".join(str(part) for part in used) or "no subject"
            notes.append(f"{', '.join(map(str, others))}; {self.path} was drawn with {before}")
            mine = {id(part): new for part, new in zip(used, found, strict=True)}
            found = [mine.get(id(part), part) for part in given]
        idle = [str(part) for part in carried if all(part.subject != other.subject for other in used)]
        if idle and not others:
            notes.append(f"{self.path} also carries {', '.join(idle)}, which took no part in it")
        return found, notes


def _match(offered: Sequence[Part], used: Sequence[Part], name: str, digits: str | None) -> Part | None:
    """The subject of this hash, best one that is also called so. Without a hash any that is not used yet may be it."""
    fitting = [
        part
        for part in offered
        if (part.subject.sha256.startswith(digits) if digits is not None else not _among(used, part))
    ]
    return min(fitting, key=lambda part: (part.subject.info.name != name, _among(used, part)), default=None)


def _among(parts: Sequence[Part], part: Part) -> bool:
    return any(other is part for other in parts)
