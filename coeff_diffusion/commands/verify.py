"""`coeff-diffusion verify`: whether a subject fits a base, found out from the base's configs; no weight is loaded."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint, fetch_diffusers_config
from diffusers.models import UNet2DConditionModel
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from safetensors import safe_open

from ..base import embedded_path
from ..families.fingerprint import architecture, check_fits, check_tokens_fit
from ..families.load import EMBEDDED, BaseModelError, check_checkpoint, kind_of_base
from ..method.attachment import layer_heads
from ..sources.hub import Hub, HubUnreachableError
from ..sources.open import open_subject
from ..subject.coefficients import TOKEN_OWNERS
from ..subject.errors import CoefficientsError, cut, listed, shown

MAX_CONFIG = 2**20
UNET = "unet/config.json"
CONFIGS = (UNET, *(f"{owner}/config.json" for owner in TOKEN_OWNERS))
Find = Callable[[str], Path | None]  # where a config of a base lies, by its path in the diffusers layout


@dataclass
class VerifyConfig:
    """Check that a subject fits a base. No weight is loaded: the base's configs tell."""

    file: str = field(metadata={"positional": True})
    """The subject: file, folder, card or Hub id."""
    base: str | None = None
    """The base: "embedded", a diffusers folder, a .safetensors checkpoint, or a Hub id (its configs are fetched, no
    weights). Left out, it is the one that the file names, if that is embedded or lies in the Hub's cache."""
    revision: str | None = None
    """Branch, tag or commit of a base from the Hub."""
    base_config: str | None = None
    """For a single checkpoint: the diffusers folder or Hub id its configs are read from; left out, the family is told
    from its tensors, and its configs come from the Hub."""


@dataclass(frozen=True)
class BaseLayout:
    """A base without its weights.

    Attributes:
        unet: on the meta device.
        widths: channels of each text encoder's token embeddings, by its name ("text_encoder").
    """

    unet: UNet2DConditionModel
    widths: dict[str, int]


def verify(config: VerifyConfig, say: Callable[[str], None] = print) -> None:
    """Say that the subject fits the base, or, where no base can be found, that its file is sound.

    Args:
        say: gets the one line.

    Raises:
        CoefficientsError: it does not fit, or is damaged; the message names both sides.
        BaseModelError: the base cannot be looked at.
    """
    subject = open_subject(config.file)
    base = config.base
    if base is not None:
        layout: BaseLayout | None = read_base(base, config.revision, config.base_config)
    else:
        base = subject.info.base_model
        layout = _recorded_base(base, subject.info.base_revision)
    holds = f"{len(subject)} layers" + "".join(f", a token of {t.shape[1]} channels" for t in subject.tokens.values())
    if layout is None or base is None:
        why = f"{shown(base)} is neither embedded nor in the Hub's cache" if base else "it does not say for which"
        say(f"{config.file} is sound ({holds}), but was not checked against a base: {why}; give --base")
        return
    check_fits(subject, layout.unet)
    check_tokens_fit(subject, layout.widths)
    total = len(layer_heads(layout.unet))
    say(f"{config.file} ({holds}) fits {base} ({architecture(layout.unet)}, {total} attention layers)")


def read_base(name: str, revision: str | None = None, config: str | None = None) -> BaseLayout:
    """The layout of a base from its configs.

    Args:
        name: as for `load_base`.
        revision: of a Hub repository.
        config: for a single checkpoint, where its configs are read from.

    Raises:
        BaseModelError, HubError: there is no such base, or its configs cannot be read.
    """
    kind = kind_of_base(name)
    if revision is not None and kind != "hub":
        raise BaseModelError(f"--revision only means something for a Hub id, not for {name!r}")
    if config is not None and kind != "checkpoint":
        raise BaseModelError(f"--base_config only means something for a single checkpoint, not for {name!r}")
    match kind:
        case "embedded":
            return _from_configs(_in_folder(embedded_path()), name)
        case "folder":
            return _from_configs(_in_folder(Path(name).expanduser()), name)
        case "checkpoint":
            return _from_checkpoint(Path(name).expanduser(), config)
        case "hub":
            return _from_configs(_in_hub(name, revision), name)


def _recorded_base(name: str, revision: str) -> BaseLayout | None:
    """The base that a file names, if it is at hand. A stranger's file makes nobody fetch or open anything else."""
    if name == EMBEDDED:
        return read_base(EMBEDDED)
    find = _in_cache(name, revision or None)
    return _from_configs(find, name) if find(UNET) else None


# --- where the configs lie --------------------------------------------------------------------------------------------


def _in_folder(folder: Path) -> Find:
    return lambda name: folder / name if (folder / name).is_file() else None


def _in_cache(repo: str, revision: str | None) -> Find:
    def find(name: str) -> Path | None:
        try:
            found = try_to_load_from_cache(repo, name, revision=revision)
        except HFValidationError:  # no id at all, but a path or a text
            return None
        return Path(found) if isinstance(found, str) else None

    return find


def _in_hub(repo: str, revision: str | None) -> Find:
    """Fetch the configs, and nothing else; without a network those in the cache are taken."""
    hub = Hub()
    try:
        listing = hub.listing(repo, revision)
        wanted = [name for name in CONFIGS if 0 < (listing.sizes.get(name) or 0) <= MAX_CONFIG]
        found = {name: hub.download(repo, name, listing.commit, revision) for name in wanted}
    except HubUnreachableError:
        cached = _in_cache(repo, revision)
        if cached(UNET) is None:
            raise
        return cached
    return found.get


# --- what they say ----------------------------------------------------------------------------------------------------


def _from_configs(find: Find, base: str) -> BaseLayout:
    config = _read_config(find(UNET), base)
    if config is None:
        raise BaseModelError(f"{base!r} has no {UNET}; expected a Stable Diffusion in the layout of diffusers")
    if (kind := config.get("_class_name", "UNet2DConditionModel")) != "UNet2DConditionModel":
        raise BaseModelError(f"{base!r} draws with {shown(kind)}; expected a UNet2DConditionModel")
    try:
        with torch.device("meta"):
            unet = UNet2DConditionModel.from_config(config)
    except (ValueError, TypeError, KeyError, IndexError, ArithmeticError, RuntimeError) as error:
        raise BaseModelError(f"{base!r}: its {UNET} makes no UNet: {cut(' '.join(str(error).split()))}") from error
    configs = {owner: _read_config(find(f"{owner}/config.json"), base) for owner in TOKEN_OWNERS}
    widths = {owner: found["hidden_size"] for owner, found in configs.items() if found and "hidden_size" in found}
    return BaseLayout(unet, widths)


def _read_config(path: Path | None, base: str) -> dict[str, Any] | None:
    if path is None:
        return None
    try:
        with path.open("rb") as file:
            found = json.loads(file.read(MAX_CONFIG))
    except (OSError, ValueError, RecursionError) as error:
        raise BaseModelError(f"{base!r}: {path.parent.name}/{path.name} cannot be read: {cut(str(error))}") from error
    if not isinstance(found, dict):
        raise BaseModelError(f"{base!r}: {path.parent.name}/{path.name} is {shown(found)}, expected a JSON object")
    return found


def _from_checkpoint(path: Path, config: str | None) -> BaseLayout:
    """The layout of a single checkpoint: its header says which tensors there are, the configs of its family the heads.

    diffusers tells the family, and gives the tensors their names in its own layout.
    """
    check_checkpoint(path)
    with safe_open(path, framework="pt") as file:
        shapes = {name: torch.empty(file.get_slice(name).get_shape(), device="meta") for name in file.keys()}  # noqa: SIM118
    source = config or fetch_diffusers_config(shapes)["pretrained_model_name_or_path"]
    try:
        if kind_of_base(source) == "checkpoint":
            raise BaseModelError("it is a checkpoint itself")
        layout = read_base(source)
    except (BaseModelError, CoefficientsError) as error:
        raise BaseModelError(
            f"{str(path)!r} holds weights only, and its heads stand in the configs of its family ({source}), which "
            f"cannot be read: {error}; give a diffusers folder of the same family as --base_config"
        ) from error
    expected = {name: tensor.shape for name, tensor in layout.unet.state_dict().items()}
    try:
        converted = convert_ldm_unet_checkpoint(shapes, dict(layout.unet.config))
    except (KeyError, IndexError, AttributeError):
        converted = {}
    found = {name: tensor.shape for name, tensor in converted.items()}
    wrong = [f"{name} is {list(found.get(name, []))}" for name in expected if found.get(name) != expected[name]]
    if wrong:
        raise BaseModelError(
            f"{str(path)!r} does not have the tensors that the configs of {source} call for: {listed(wrong)}; give a "
            "diffusers folder of its own family as --base_config"
        )
    return layout
