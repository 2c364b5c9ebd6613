"""A base without its weights: what its configs say of its layers, on the meta device.

So it is known whether a subject fits a base that is not loaded, and a QR code can name its base and leave the layers'
paths out.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import diffusers
import torch

from ..base import embedded_path
from ..subject.coefficients import Coefficients
from ..subject.errors import cut, shown
from ..subject.user_file import read_file
from .errors import BaseModelError
from .family import Config, Family
from .fingerprint import architecture, check_adapter_fits, check_fits, check_tokens_fit, fingerprint
from .folders import MAX_CONFIG, check_model_index
from .registry import EXPECTED, FAMILIES, by_denoiser, denoiser_of, encoders_of, family_of, sites_of

EMBEDDED = "the embedded base"
Find = Callable[[str], Path | None]  # where a config of a base lies, by its path in the diffusers layout


@dataclass(frozen=True)
class Layout:
    """The structure of a base.

    Attributes:
        denoiser: the network with the attention layers; its weights are of no matter.
        widths: channels of each text encoder's token embeddings, by the component's name ("text_encoder").
        text_heads: heads of each attention layer of the text encoders, as far as they are known, by path with the
            component's name in front.
    """

    denoiser: Any
    widths: Mapping[str, int]
    text_heads: Mapping[str, int] = field(default_factory=dict)

    @cached_property
    def heads(self) -> dict[str, int]:
        """Heads of each layer by attention path, sorted by path."""
        return dict(sorted((path, site.heads) for path, site in sites_of(self.denoiser).items()))

    @cached_property
    def fingerprint(self) -> str:
        """See `fingerprint.fingerprint`."""
        return fingerprint(self.denoiser)

    @property
    def architecture(self) -> str:
        """See `registry.architecture`."""
        return architecture(self.denoiser)

    def apart(self) -> "Layout":
        """The same on a structure of its own, which stays as it is while a pipeline draws."""
        return Layout(_on_meta(type(self.denoiser), dict(self.denoiser.config)), self.widths, self.text_heads)

    def check_fits(self, subject: Coefficients) -> None:
        """Make sure that a subject, its learned tokens and its adapter included, belongs to this base.

        Raises:
            CoefficientsError: it does not, or its adapter is missing; the message names both sides.
        """
        check_fits(subject, self.denoiser, self.text_heads)
        check_tokens_fit(subject, self.widths)
        check_adapter_fits(subject, self.denoiser)


def layout_of(pipe: Any) -> Layout:
    """The layout of a pipeline that is loaded, on its own denoiser."""
    family, encoders = family_of(pipe), encoders_of(pipe)
    widths = {name: encoder.get_input_embeddings().embedding_dim for name, encoder in encoders.items()}
    configs = {name: encoder.config.to_dict() for name, encoder in encoders.items()}
    return Layout(denoiser_of(pipe), widths, _text_heads(family, configs))


def read_layout(find: Find, base: str) -> Layout:
    """The layout of a base by its configs.

    Args:
        find: where the configs lie.
        base: what the errors call it.

    Raises:
        BaseModelError: a config is missing or cannot be read, or it is no base that subjects are made for.
    """
    index = _read_config(find("model_index.json"), base)
    family = check_model_index(index, base) if index is not None else _by_denoiser(find, base)
    config = _read_config(find(f"{family.denoiser}/config.json"), base)
    if config is None:
        raise BaseModelError(
            f"{base!r} has no {family.denoiser}/config.json; expected a base in the layout of diffusers"
        )
    name = config.get("_class_name", family.denoiser_classes[0])
    if name not in family.denoiser_classes:
        raise BaseModelError(f"{base!r} draws with {shown(name)}; expected a {family.denoiser_classes[0]}")
    try:
        denoiser = _on_meta(getattr(diffusers, name), config)
    except (ValueError, TypeError, KeyError, IndexError, ArithmeticError, RuntimeError) as error:
        path = f"{family.denoiser}/config.json"
        raise BaseModelError(f"{base!r}: its {path} makes no denoiser: {cut(' '.join(str(error).split()))}") from error
    configs = {part: _read_config(find(f"{part}/config.json"), base) for part in (*family.text_encoders, "vae")}
    known = {part: found for part, found in configs.items() if found is not None}
    if wrong := family.mismatches({**known, family.denoiser: dict(denoiser.config)}):
        raise BaseModelError(f"{base!r} {wrong[0]}; expected {EXPECTED} for drawing from text")
    widths = {part: found["hidden_size"] for part, found in known.items() if "hidden_size" in found}
    try:
        heads = _text_heads(family, {part: known[part] for part in widths})
    except ValueError as error:
        raise BaseModelError(f"{base!r}: a text encoder of {error}") from error
    return Layout(denoiser, widths, heads)


def _text_heads(family: Family, configs: Mapping[str, Config]) -> dict[str, int]:
    return {path: heads for name, config in configs.items() for path, heads in family.text_heads(name, config).items()}


def _by_denoiser(find: Find, base: str) -> Family:
    """The family of a folder that does not say which pipeline it is for."""
    for component in dict.fromkeys(family.denoiser for family in FAMILIES):
        config = _read_config(find(f"{component}/config.json"), base)
        if config is not None:
            name = config.get("_class_name", "UNet2DConditionModel")
            if (family := by_denoiser(name, config)) is not None:
                return family
            raise BaseModelError(f"{base!r} draws with {shown(name)}; expected {EXPECTED}")
    raise BaseModelError(f"{base!r} has no unet/config.json; expected a base in the layout of diffusers")


def _read_config(path: Path | None, base: str) -> dict[str, Any] | None:
    if path is None:
        return None
    try:
        found = json.loads(read_file(path, MAX_CONFIG))
    except (OSError, ValueError, RecursionError) as error:
        raise BaseModelError(f"{base!r}: {path.parent.name}/{path.name} cannot be read: {cut(str(error))}") from error
    if not isinstance(found, dict):
        raise BaseModelError(f"{base!r}: {path.parent.name}/{path.name} is {shown(found)}, expected a JSON object")
    return found


def _on_meta(kind: Any, config: Config) -> Any:
    with torch.device("meta"):
        return kind.from_config(dict(config))


# --- bases known by heart ---------------------------------------------------------------------------------------------

# A QR code has room for a subject of one text encoder.
PUBLISHED = {name: (f, config) for f in FAMILIES if len(f.text_encoders) == 1 for name, config in f.known.items()}
KNOWN = (EMBEDDED, *PUBLISHED)


def known_layout(start: str) -> Layout | None:
    """The base known by heart whose fingerprint starts with `start` (hex), the embedded one first; None if none does.

    Each is built when it is first asked for, in 0.06 s; those after the one that is found are not.
    """
    return next((found for name in KNOWN if (found := _known(name)) and found.fingerprint.startswith(start)), None)


@cache
def _known(name: str) -> Layout | None:
    """None for the embedded base where the installation lacks it."""
    if name == EMBEDDED:
        try:
            folder = embedded_path()
        except FileNotFoundError:
            return None
        return read_layout(lambda part: folder / part, EMBEDDED)
    family, config = PUBLISHED[name]
    denoiser = _on_meta(getattr(diffusers, family.denoiser_classes[0]), config)
    return Layout(denoiser, {family.text_encoders[0]: denoiser.config["cross_attention_dim"]})
