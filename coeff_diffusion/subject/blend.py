"""Several subjects made into one: the weighted sum of their coefficients and of what stages add to their triggers."""

from collections.abc import Iterable, Mapping

from torch import Tensor

from .coefficients import Coefficients
from .errors import CoefficientsError, cut, shown
from .info import MAX_TEXT, CoefficientsInfo
from .places import text_encoder_of

Weighted = list[tuple[Coefficients, float]]


def blend(parts: Mapping[Coefficients, float] | Iterable[tuple[Coefficients, float]]) -> Coefficients:
    """The weighted sum of several subjects' coefficients; a layer that a subject lacks counts as zero.

    Tokens: where one subject has a learned token, the blend has it, under its trigger. Where several have, they must be
    for the same trigger and of the same shape, and are averaged with the weights. What stages add to it is summed.

    Args:
        parts: coefficients and their weights. Weights need not sum to one.

    Raises:
        CoefficientsError: nothing to blend, other head counts or bases, tokens that cannot be averaged, or an adapter.
    """
    pairs = list(parts.items() if isinstance(parts, Mapping) else parts)
    if not pairs:
        raise CoefficientsError("there is nothing to blend; give at least one subject and its weight")
    if joined := [part.info.name for part, _ in pairs if part.info.adapter]:
        raise CoefficientsError(
            f"{shown(joined[0])} learned with an adapter, which cannot be blended; load the subjects side by side "
            "instead, each with its strength"
        )
    for what in ("base_architecture", "base_fingerprint"):
        values = {getattr(part.info, what) for part, _ in pairs} - {""}
        if len(values) > 1:
            differ = " and ".join(cut(value) for value in sorted(values))
            raise CoefficientsError(f"only subjects of one base can be blended; {what}: {differ}")
    coeffs: dict[str, Tensor] = {}
    for part, weight in pairs:
        for path, coeff in part.items():
            if path in coeffs and coeffs[path].shape != coeff.shape:
                raise CoefficientsError(
                    f"only subjects of one base can be blended; {cut(path)} has {len(coeffs[path])} and {len(coeff)} "
                    "heads"
                )
            coeffs[path] = coeffs.get(path, 0) + weight * coeff
    with_token = [(part, weight) for part, weight in pairs if part.tokens]
    tokens, info = _mean_tokens(with_token), _blended_info(pairs, with_token, tuple(coeffs))
    stage_tokens: dict[str, Tensor] = {}
    for part, weight in with_token:
        for stage, token in part.stage_tokens.items():
            stage_tokens[stage] = stage_tokens.get(stage, 0) + weight * token
    denoiser = next((part.denoiser for part, _ in pairs if part.of_text_encoder("")), "unet")
    return Coefficients(coeffs, tokens, info, denoiser, stage_tokens)


def _mean_tokens(parts: Weighted) -> dict[str, Tensor]:
    """The weighted mean of several embeddings of one trigger."""
    kinds = {(part.info.trigger, *((owner, *token.shape) for owner, token in part.tokens.items())) for part, _ in parts}
    if len(kinds) > 1:
        raise CoefficientsError(
            "learned tokens can only be blended for one trigger and one shape, but these are "
            + " and ".join(
                f"{shown(part.info.trigger)} {[[*t.shape] for t in part.tokens.values()]}" for part, _ in parts
            )
            + "; load them side by side instead, each with its strength: then each trigger calls up its own subject"
        )
    if len(parts) == 1:
        return parts[0][0].tokens
    total = sum(weight for _, weight in parts)
    if parts and total == 0:
        raise CoefficientsError("the weights of the subjects with learned tokens sum to zero; their mean is undefined")
    owners = parts[0][0].tokens if parts else {}
    return {owner: sum(part.tokens[owner] * (weight / total) for part, weight in parts) for owner in owners}  # type: ignore[misc]


def _blended_info(parts: Weighted, with_token: Weighted, paths: tuple[str, ...]) -> CoefficientsInfo:
    """What the subjects agree on, and a name that says what was blended."""
    infos = [part.info for part, _ in parts]
    shared = ("base_", "class_word", "trigger", "gate", "resolution", "prediction_type", "license", "layers", "blocks")
    agreed = {}
    for name in (name for name in vars(infos[0]) if name.startswith(shared)):
        values = {getattr(info, name) for info in infos}
        if name.startswith("base_") and len(values) > 1:
            values -= {"", ()}  # they are of one base: what one of them knows of it holds for all
        if len(values) == 1:
            agreed[name] = values.pop()
    if not {"layers", "blocks"} <= agreed.keys():
        agreed |= {"layers": "all+text" if any(map(text_encoder_of, paths)) else "all", "blocks": paths}
    if with_token:
        agreed["trigger"] = with_token[0][0].info.trigger
    name = " + ".join(f"{weight:g} {part.info.name or 'unnamed'}" for part, weight in parts)
    return CoefficientsInfo(**{**agreed, "name": cut(name, MAX_TEXT)})
