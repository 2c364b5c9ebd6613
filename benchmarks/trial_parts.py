"""What learns beside a subject in trials of `trials.py`: each acts in any copy of the denoiser that has the subject.

Legend: B samples, H heads of a layer, D channels of a head, T text positions, E their width, V vectors of a token.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from coeff_diffusion.method.acting import Acting
from coeff_diffusion.method.attachment import ATTRIBUTE as ATTACHED
from coeff_diffusion.method.override import dropped
from coeff_diffusion.method.text_offsets import ATTRIBUTE as READING
from coeff_diffusion.training.model import Learner

TIMESTEPS = 1000


class Part:
    """Something that learns beside the coefficients and tokens, or changes how these act.

    Args:
        learner: with what a subject has; the part learns where these do. None: nothing learns.
    """

    rate = 1e-3
    """At which it learns: that of the coefficients, unless it is another kind of number."""

    def __init__(self, learner: Learner | None = None) -> None:
        self.training = True
        self.noise: Tensor = torch.zeros(
            1
        )  # [B], of the forward that runs: 0 at the last step of drawing, 1 at the first
        shapes = self.shapes(learner) if learner else {}
        self.parameters = {name: nn.Parameter(torch.zeros(shape)) for name, shape in shapes.items()}

    def shapes(self, learner: Learner) -> Mapping[str, tuple[int, ...]]:
        """What learns, by name; all starts at zero, where it changes nothing."""
        return {}

    def install(self, unet: Any) -> None:
        """Act in this network from now on."""
        unet.register_forward_pre_hook(self._see, with_kwargs=True)
        self.hook(unet)

    def hook(self, unet: Any) -> None:
        """What is installed beside."""

    def _see(self, unet: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        timestep = torch.as_tensor(kwargs["timestep"] if "timestep" in kwargs else args[1])
        sample = kwargs["sample"] if "sample" in kwargs else args[0]
        self.noise = (timestep.float().flatten() / TIMESTEPS).expand(len(sample))


class OfNoise(Part):
    """Coefficients that depend on how much noise there is."""

    def hook(self, unet: Any) -> None:
        unet.register_forward_pre_hook(self._change)
        unet.register_forward_hook(self._restore, always_call=True)

    def changed(self, path: str, coeff: Tensor) -> Tensor:
        """`[B, H, H]` in place of `[B or 1, H, H]`."""
        raise NotImplementedError

    def _change(self, unet: nn.Module, args: tuple[Any, ...]) -> None:
        overrides = getattr(unet, ATTACHED).overrides
        self.before = {path: override.acting for path, override in overrides.items()}
        for path, acting in self.before.items():
            if acting is not None:
                coeff = acting.coeff if acting.coeff.ndim == 3 else acting.coeff[None]
                overrides[path].acting = Acting(self.changed(path, coeff))

    def _restore(self, unet: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        for path, acting in self.before.items():
            getattr(unet, ATTACHED).overrides[path].acting = acting


class TimedCoefficients(OfNoise):
    """`C0 + g(t) C1`, where g goes from 1 without noise to -1."""

    def shapes(self, learner: Learner) -> Mapping[str, tuple[int, ...]]:
        return {path: tuple(coeff.shape) for path, coeff in learner.coefficients.items()}

    def changed(self, path: str, coeff: Tensor) -> Tensor:
        return coeff + (1 - 2 * self.noise)[:, None, None] * self.parameters[path]


class NoisyDropout(OfNoise):
    """Dropout of the coefficients that rises with the noise, from none to twice the usual rate (T-LoRA, 2507.05964)."""

    rate_of_most_noise = 0.4

    def changed(self, path: str, coeff: Tensor) -> Tensor:
        if not self.training:
            return coeff
        rows = coeff.expand(len(self.noise), -1, -1)
        return torch.stack(
            [dropped(row, float(self.rate_of_most_noise * at)) for row, at in zip(rows, self.noise, strict=True)]
        )


class TimedTokens(Part):
    """Stage tokens `v0 + g(t) v1` (as NeTI, 2305.15391, whose words know the time as well as the layer)."""

    rate = 3e-2

    def shapes(self, learner: Learner) -> Mapping[str, tuple[int, ...]]:
        return {stage: (vectors.shape[-1],) for stage, vectors in learner.stage_tokens.items()}

    def hook(self, unet: Any) -> None:
        for stage in getattr(unet, READING).hooks:
            unet.get_submodule(stage).register_forward_pre_hook(
                lambda module, args, kwargs, stage=stage: self._read(unet, stage, args, kwargs), with_kwargs=True
            )

    def _read(self, unet: Any, stage: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        offset = getattr(unet, READING).hooks[stage].offset
        if offset is None:
            return None
        text = kwargs["encoder_hidden_states"]
        at_trigger = (offset != 0).any(-1, keepdim=True).to(text)  # [B, T, 1] or [T, 1]
        added = (1 - 2 * self.noise)[:, None, None] * self.parameters[stage]  # [B, 1, E]
        return args, {**kwargs, "encoder_hidden_states": text + at_trigger * added}


class LockedKeys(Part):
    """The stage tokens are in the values alone: where to look is left to the word (Perfusion, 2305.01644)."""

    def hook(self, unet: Any) -> None:
        for stage, reading in getattr(unet, READING).hooks.items():
            for name, module in unet.get_submodule(stage).named_modules():
                if name.endswith("attn2.to_k"):
                    module.register_forward_pre_hook(
                        lambda layer, args, reading=reading: (
                            None if reading.offset is None else (args[0] - reading.offset.to(args[0]), *args[1:])
                        )
                    )


class InLayers(Part):
    """Something of the layers that have coefficients."""

    def hook(self, unet: Any) -> None:
        for path in dict.fromkeys(name.partition("/")[0] for name in self.parameters):
            self.hook_layer(unet.get_submodule(path), path)

    def hook_layer(self, layer: Any, path: str) -> None:
        raise NotImplementedError


class Temperature(InLayers):
    """A temperature for each head: its queries are longer or shorter. Foldable into the weights."""

    def shapes(self, learner: Learner) -> Mapping[str, tuple[int, ...]]:
        return {path: (len(coeff),) for path, coeff in learner.coefficients.items()}

    def hook_layer(self, layer: Any, path: str) -> None:
        def scaled(module: nn.Module, args: Any, query: Tensor) -> Tensor:
            factors = 1 + self.parameters[path]  # [H]
            return (query.unflatten(-1, (len(factors), -1)) * factors[:, None]).flatten(-2)

        layer.to_q.register_forward_hook(scaled)


class MixedValues(InLayers):
    """Values, and what heads give, are recombined by a matrix each, as the maps are. Foldable into the weights."""

    def shapes(self, learner: Learner) -> Mapping[str, tuple[int, ...]]:
        found = learner.coefficients.items()
        return {f"{path}/{what}": tuple(coeff.shape) for path, coeff in found for what in ("values", "outputs")}

    def mixed(self, name: str, channels: Tensor) -> Tensor:
        """`[..., H * D]` with the heads mixed by `I + M`."""
        matrix = self.parameters[name]
        heads = channels.unflatten(-1, (len(matrix), -1))  # [..., H, D]
        return channels + torch.einsum("gh,...hd->...gd", matrix, heads).flatten(-2)

    def hook_layer(self, layer: Any, path: str) -> None:
        layer.to_v.register_forward_hook(lambda module, args, value: self.mixed(f"{path}/values", value))
        layer.to_out[0].register_forward_pre_hook(lambda module, args: (self.mixed(f"{path}/outputs", args[0]),))
