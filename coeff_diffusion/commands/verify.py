"""`coeff-diffusion verify`: whether a subject fits a base, found out from the base's configs; no weight is loaded."""

from collections.abc import Callable
from pathlib import Path

import torch
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint, fetch_diffusers_config
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from safetensors import safe_open

from ..base import embedded_path
from ..families.checkpoints import check_checkpoint, usual_config
from ..families.errors import BaseModelError
from ..families.family import AUTOENCODER
from ..families.folders import INDEX
from ..families.layout import MAX_CONFIG, Find, Layout, read_layout
from ..families.load import EMBEDDED, kind_of_base
from ..families.registry import FAMILIES
from ..hub import HubUnreachableError, api, asking, listing
from ..sources.open import open_subject
from ..subject.errors import CoefficientsError, listed, shown
from ..subject.user_file import user_path
from .config import VerifyConfig

COMPONENTS = {part for family in FAMILIES for part in (family.denoiser, *family.text_encoders, "vae")}
CONFIGS = (INDEX, *(f"{part}/config.json" for part in sorted(COMPONENTS)))


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
        layout: Layout | None = read_base(base, config.revision, config.base_config)
    else:
        base = subject.info.base_model
        layout = _recorded_base(base, subject.info.base_revision)
    holds = f"{len(subject)} layers" + "".join(f", a token of {t.shape[1]} channels" for t in subject.tokens.values())
    if subject.stage_tokens:
        holds += f", tokens of {len(subject.stage_tokens)} stages"
    if subject.adapter is not None:
        holds += f", an adapter ({subject.adapter.kind}, its hash is right)"
    if layout is None or base is None:
        why = f"{shown(base)} is neither embedded nor in the Hub's cache" if base else "it does not say for which"
        say(f"{config.file} is sound ({holds}), but was not checked against a base: {why}; give --base")
        return
    layout.check_fits(subject)
    say(f"{config.file} ({holds}) fits {base} ({layout.architecture}, {len(layout.heads)} attention layers)")


def read_base(name: str, revision: str | None = None, config: str | None = None) -> Layout:
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
            return read_layout(_in_folder(embedded_path()), name)
        case "folder":
            return read_layout(_in_folder(user_path(name)), name)
        case "checkpoint":
            return _from_checkpoint(user_path(name), config)
        case "hub":
            return read_layout(_in_hub(name, revision), name)


def _recorded_base(name: str, revision: str) -> Layout | None:
    """The base that a file names, if it is at hand. A stranger's file makes nobody fetch or open anything else."""
    if name == EMBEDDED:
        return read_base(EMBEDDED)
    find = _in_cache(name, revision or None)
    return read_layout(find, name) if _holds_base(find) else None


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


def _holds_base(find: Find) -> bool:
    return any(find(f"{family.denoiser}/config.json") for family in FAMILIES)


def _in_hub(repo: str, revision: str | None) -> Find:
    """Fetch the configs, and nothing else; without a network those in the cache are taken."""
    try:
        sizes = listing(repo, revision).sizes
        wanted = [name for name in CONFIGS if 0 < (sizes.get(name) or 0) <= MAX_CONFIG]
        with asking(repo, revision):
            return {name: Path(api().hf_hub_download(repo, name, revision=revision)) for name in wanted}.get
    except HubUnreachableError:
        cached = _in_cache(repo, revision)
        if not _holds_base(cached):
            raise
        return cached


# --- a single checkpoint ----------------------------------------------------------------------------------------------


def _from_checkpoint(path: Path, config: str | None) -> Layout:
    """The layout of a single checkpoint: its header says which tensors there are, the configs of its family the heads.

    diffusers tells the family, and gives the tensors their names in its own layout.
    """
    family = check_checkpoint(path, lacks=(AUTOENCODER,))
    with safe_open(path, framework="pt") as file:
        shapes = {name: torch.empty(file.get_slice(name).get_shape(), device="meta") for name in file.keys()}  # noqa: SIM118
    source = config or usual_config(path, family) or fetch_diffusers_config(shapes)["pretrained_model_name_or_path"]
    try:
        if kind_of_base(source) == "checkpoint":
            raise BaseModelError("it is a checkpoint itself")
        layout = read_base(source)
    except (BaseModelError, CoefficientsError) as error:
        raise BaseModelError(
            f"{str(path)!r} holds weights only, and its heads stand in the configs of its family ({source}), which "
            f"cannot be read: {error}; give a diffusers folder of the same family as --base_config"
        ) from error
    expected = {name: tensor.shape for name, tensor in layout.denoiser.state_dict().items()}
    try:
        converted = convert_ldm_unet_checkpoint(shapes, dict(layout.denoiser.config))
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
