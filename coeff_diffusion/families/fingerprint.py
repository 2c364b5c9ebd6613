"""Which base a UNet is: what `CoefficientsInfo` records of it, so that a file can tell whether it fits another."""

import hashlib
import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from torch import Tensor, nn

from ..method.adapter_hooks import check_adapters, projections
from ..method.attachment import CoeffConfig
from ..method.errors import AttachmentError
from ..method.sites import text_stages, unwrapped
from ..subject.coefficients import Coefficients
from ..subject.errors import CoefficientsError, cut, listed
from ..subject.places import text_encoder_of
from ..subject.safetensors_file import FILE_NAME
from ..subject.weight_sample import other_weights as other_weights
from ..subject.weight_sample import same_weights as same_weights
from ..subject.weight_sample import spread as spread
from .registry import architecture, sites_of

EARLIER_EMBEDDED = {
    "8b9a0c2314f331b18daf9e01ec78136be7c6e0002c8efb36eb1d732be166a395": "the first embedded base (131 concepts)",
}


def describe_base(unet: Any) -> dict[str, Any]:
    """The fields of `CoefficientsInfo` that a denoiser itself knows: architecture, fingerprint, a few weights."""
    return {
        "base_architecture": architecture(unet),
        "base_fingerprint": fingerprint(unet),
        "base_sample": weight_sample(unet),
    }


def fingerprint(unet: Any) -> str:
    """Hex SHA-256 of the attention topology: path, heads, inner width and context width of every attention layer."""
    topology = [
        (path, site.heads, getattr(site.module, "inner_dim", None), getattr(site.module, "cross_attention_dim", None))
        for path, site in sites_of(unet).items()
    ]
    return hashlib.sha256(json.dumps(topology).encode()).hexdigest()


def weight_sample(unet: Any) -> tuple[float, ...]:
    """24 weights that tell a base from its fine-tunes, and from itself with a LoRA merged in.

    Evenly spread over the first convolution, the last one, and the value projection of the attention layer in the
    middle of the list: a LoRA leaves the convolutions alone. A network without such convolutions is sampled at its
    first and last parameters. Empty where the weights are elsewhere for the time being (diffusers' sequential offload),
    there are none (meta device), or they are kept in less than 16 bits (layerwise casting, bitsandbytes): rounded so,
    they tell nothing.
    """
    weights = _sampled(unet)
    if any(weight.is_meta or not weight.is_floating_point() or weight.element_size() < 2 for weight in weights):
        return ()
    return tuple(value for weight in weights for value in spread(weight, 8))


def _sampled(unet: Any) -> list[Tensor]:
    unet = unwrapped(unet)
    layers: list[Any] = [site.module for site in sites_of(unet).values()]
    parameters = list(unet.parameters())
    ends = [
        getattr(getattr(unet, name, None), "weight", parameters[i]) for name, i in (("conv_in", 0), ("conv_out", -1))
    ]
    return [*ends, layers[len(layers) // 2].to_v.weight]


def _ends(*networks: nn.Module) -> list[Tensor]:
    """The first and the last weights of each network."""
    parameters = [list(network.parameters()) for network in networks]
    return [weights[i] for weights in parameters for i in (0, -1)]


def telling_weights(unet: Any, *others: nn.Module) -> list[Tensor]:
    """All weights that `weight_sample` and `base_hash` look at."""
    return [*_sampled(unet), *_ends(*others)]


def base_hash(unet: Any, *others: nn.Module) -> str | None:
    """12 hex digits that tell one base from another: over its attention layers and some weights of each part.

    The weights are taken as they are: in another dtype the same base has another hash. None where they are elsewhere
    for the time being (diffusers' sequential offload).

    Args:
        others: what else draws: the text encoder, the VAE's decoder.
    """
    weights = telling_weights(unet, *others)
    if any(weight.is_meta for weight in weights):
        return None
    numbers = [value for weight in weights for value in spread(weight, 8)]
    return hashlib.sha256(json.dumps([fingerprint(unet), numbers]).encode()).hexdigest()[:12]


def check_fits(coefficients: Coefficients, unet: Any, text_heads: Mapping[str, int] = MappingProxyType({})) -> None:
    """Make sure that coefficients belong to a base's attention layers. Looks at no weight; works on the meta device.

    Args:
        text_heads: heads of the text encoders' layers by path, see `Layout`.

    Raises:
        CoefficientsError: a layer that this base does not have, one with another number of heads, one that was trained
            but is missing, or layers of another width. The message names the first offenders and both sides.
    """
    info, sites = coefficients.info, sites_of(unet)
    if info.base_fingerprint in EARLIER_EMBEDDED and fingerprint(unet) != info.base_fingerprint:
        raise CoefficientsError(
            f"the subject is for {EARLIER_EMBEDDED[info.base_fingerprint]}, which a better one has replaced: teach it "
            "anew from its pictures"
        )
    heads = {**{path: site.heads for path, site in sites.items()}, **text_heads}
    wrong = [f"{cut(path)} is no attention layer of this base" for path in coefficients if path not in heads]
    wrong += [
        f"{path} has {len(coeff)} heads, in this base {heads[path]}"
        for path, coeff in coefficients.items()
        if path in heads and len(coeff) != heads[path]
    ]
    stages, width = text_stages(sites.values()), unet.config.get("cross_attention_dim")
    for stage, token in coefficients.stage_tokens.items():
        if stage not in stages:
            wrong.append(f"{cut(stage)} is no stage of this base that reads the prompt")
        elif token.shape[1] != width:
            wrong.append(f"the token of {stage} has {token.shape[1]} channels, in this base {width}")
    if coefficients and not wrong:
        config = CoeffConfig(layers=info.layers, blocks=info.blocks)
        expected = [path for path, site in sites.items() if config.selects(site)]
        expected += [path for path in text_heads if config.chooses(path, "text")]
        wrong += [f"{path} has no coefficients" for path in expected if path not in coefficients]
        if not expected:
            wrong.append(f"no attention layer matches layers={info.layers!r}, blocks={list(info.blocks)}")
    if not wrong and info.base_fingerprint not in ("", fingerprint(unet)):
        wrong.append("the attention layers have other widths")
    if wrong:
        base, family = cut(info.base_model) or "a base", cut(info.base_architecture) or "unknown family"
        count = len(heads if any(map(text_encoder_of, coefficients)) else sites)
        raise CoefficientsError(
            f"the subject is for {base} ({family}, {len(coefficients)} layers), this base is {architecture(unet)} with "
            f"{count} layers: {listed(wrong)}"
        )


def check_adapter_fits(coefficients: Coefficients, denoiser: Any) -> None:
    """Make sure that the adapter a subject learned with, if there is one, is at hand and belongs to a base.

    Raises:
        CoefficientsError: it is missing, or changes other projections than those of this denoiser's attention layers.
    """
    info, adapter = coefficients.info, coefficients.adapter
    if adapter is not None:
        try:
            check_adapters([adapter], projections(sites_of(denoiser).values()))
        except AttachmentError as error:
            raise CoefficientsError(str(error)) from error
    elif info.adapter:
        raise CoefficientsError(
            f"the subject learned with an adapter ({info.adapter}), which is not there: put its file, "
            f"{info.adapter_file} (SHA-256 {info.adapter_sha256[:12]}...), beside the subject's own, {FILE_NAME}"
        )


def check_tokens_fit(coefficients: Coefficients, widths: Mapping[str, int]) -> None:
    """Make sure that the learned tokens of a subject belong to the text encoders of a base.

    Args:
        widths: channels of the token embeddings of each text encoder of the base, by its name ("text_encoder").

    Raises:
        CoefficientsError: the base lacks the text encoder, or it has another width. The message names both sides.
    """
    for owner, token in coefficients.tokens.items():
        if owner not in widths:
            raise CoefficientsError(f"the subject has a token for {owner}, which this base does not have")
        if token.shape[1] != widths[owner]:
            raise CoefficientsError(
                f"the subject's token has {token.shape[1]} channels, but the {owner} of this base has {widths[owner]}: "
                f"it was trained on {cut(coefficients.info.base_model) or 'another base'}"
            )
