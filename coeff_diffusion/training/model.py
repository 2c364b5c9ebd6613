"""A frozen base with the few numbers that learn: coefficients, the trigger's embedding, or both.

Shapes: B pictures of a batch; C, h, w channels and size of the latents; D channels of a token embedding.
"""

import fnmatch
import os
import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import torch
from torch import Tensor, nn

from .. import __version__
from ..families.family import Conditioning, Family, Framing
from ..families.fingerprint import describe_base
from ..families.load import EMBEDDED, base_name
from ..families.registry import denoiser_of, encoders_of, family_of, tokenizer_name
from ..families.shared_weights import shared_pipeline
from ..inference.trigger_tokens import TriggerEmbedding, add_trigger, initial_vectors
from ..method.attachment import CoeffConfig, attach_heads, attached_layers, collect, is_attached, trainable_parameters
from ..method.sites import Site, text_stages
from ..method.text_offsets import at_positions, attach_offsets, set_offsets
from ..subject.coefficients import Coefficients
from ..subject.info import CoefficientsInfo
from .adapter import LearningAdapter, is_rounded
from .config import ConfigError, TrainConfig
from .probe import Effect

PLACES = "trigger_places"  # beside what the family's condition holds: which vector stands where, `[B, T]`
EMBEDDED_BLOCKS = ("down_blocks.1.*", "up_blocks.*")
"""Stages of the embedded base that are worth a token: without one of the others' tokens a subject is as good."""
TEXT_BLOCKS = "text_encoder*"
"""The pattern that all layers of text encoders match, beside patterns for the denoiser."""
PATHS = """paths are like up_blocks.1.attentions.0.transformer_blocks.0.attn2 and \
text_encoder/text_model.encoder.layers.0.self_attn"""
DTYPES = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class Learner:
    """A student over the weights of a pipeline. The pipeline itself is never changed, and may draw meanwhile.

    Args:
        pipe: the base, without subjects.
        config: resolved settings.
        device: where to train; weights are copied there unless they are there already.

    Attributes:
        coefficients: `[H, H]` float32 parameters by attention path of the denoiser; empty where none are trained.
        text_coefficients: the same of the text encoders, by path with the component's name in front.
        tokens: `[vectors, D]` float32 parameters by text encoder; empty when only the coefficients are trained.
        stage_tokens: `[vectors, D]` float32 parameters by stage of the denoiser that reads the text; empty without.
        adapter: the adapter that learns beside them; None without.
        info: what is known of the subject before it is trained.
    """

    def __init__(self, pipe: Any, config: TrainConfig, device: torch.device) -> None:
        self.device, self.dtype = device, DTYPES[config.mixed_precision]
        self.family = family_of(pipe)
        self.student: Any = shared_pipeline(pipe, device, self.dtype)
        self.denoiser: Any = denoiser_of(self.student).eval()
        self.coefficients: dict[str, nn.Parameter] = {}
        self.text_coefficients: dict[str, nn.Parameter] = {}
        self.tokens: dict[str, nn.Parameter] = {}
        self.stage_tokens: dict[str, nn.Parameter] = {}
        self.adapter: LearningAdapter | None = None
        which = training_layers(config, self.family, base_name(pipe))
        self._check_patterns(config)
        if config.trains_coefficients:
            self._attach(which)
        if config.trains_token:
            for name, encoder in encoders_of(self.student).items():
                self.tokens[name] = self._add_token(name, encoder.eval(), config)
        if config.trains_stage_tokens:
            self.stage_tokens = self._add_stage_tokens(which, config.num_vectors)
        if kind := config.adapter_kind:
            every = self.family.sites(self.denoiser).values()
            self.adapter = LearningAdapter(self.denoiser, every, kind, config.seed, device)
        if config.gradient_checkpointing:
            self.denoiser.enable_gradient_checkpointing()
        self.info = CoefficientsInfo(
            name=str(config.name),
            trigger=str(config.trigger),
            class_word=str(config.class_word),
            instance_prompt=str(config.instance_prompt),
            class_prompt=str(config.class_prompt) if config.with_prior_preservation else "",
            base_model=base_name(pipe),
            base_revision=config.revision or "",
            **describe_base(self.denoiser),
            resolution=config.resolution,
            prediction_type=pipe.scheduler.config.prediction_type,
            layers=which.layers,
            blocks=which.blocks,
            seed=config.seed,
            gate=config.gate,
            license=config.license or "",
            created=creation_date(config),
            trained_with=f"coeff-diffusion {__version__}",
        )

    def _attach(self, which: CoeffConfig) -> None:
        if which.layers != "text":
            self.coefficients = _attached(self.denoiser, self.family.sites(self.denoiser), which)
        if which.layers.endswith("text"):
            for name, encoder in encoders_of(self.student).items():
                self.text_coefficients |= _attached(encoder.eval(), self.family.text_sites(name, encoder), which)
        asked = {"the denoiser": self.coefficients} if which.layers != "text" else {}
        if which.layers.endswith("text"):
            asked["the text encoder"] = self.text_coefficients
        if empty := [what for what, found in asked.items() if not found]:
            chosen = " ".join(which.blocks)
            raise ConfigError([f"--blocks {chosen} leaves no layer of {' and '.join(empty)} to learn; {PATHS}"])

    def _check_patterns(self, config: TrainConfig) -> None:
        paths = list(self.family.sites(self.denoiser))
        for name, encoder in encoders_of(self.student).items() if config.layers.endswith("text") else ():
            paths += self.family.text_sites(name, encoder)
        if lost := [pattern for pattern in config.blocks if not fnmatch.filter(paths, pattern)]:
            raise ConfigError([f"--blocks {' '.join(lost)} matches no layer that could learn; {PATHS}"])

    def _add_token(self, name: str, encoder: Any, config: TrainConfig) -> nn.Parameter:
        trigger, tokenizer = str(config.trigger), getattr(self.student, tokenizer_name(name))
        start = initial_vectors(tokenizer, encoder, str(config.class_word), config.num_vectors)
        add_trigger(tokenizer, encoder, trigger, trigger, start, trainable=True)
        parameter: nn.Parameter = encoder.get_input_embeddings().vectors[trigger]
        return parameter

    def _add_stage_tokens(self, which: CoeffConfig, vectors: int) -> dict[str, nn.Parameter]:
        sites = self.family.sites(self.denoiser)
        chosen = [path for path, site in sites.items() if replace(which, layers="all").selects(site)]
        stages = [stage for stage in text_stages(sites.values()) if any(p.startswith(f"{stage}.") for p in chosen)]
        attach_offsets(self.denoiser, stages)
        shape = (vectors, self.denoiser.config["cross_attention_dim"])
        return {stage: nn.Parameter(torch.zeros(shape, device=self.device)) for stage in stages}

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """Everything that learns, by a name that is the same in every run."""
        adapter = self.adapter.parameters if self.adapter else {}
        coefficients = {**self.coefficients, **self.text_coefficients}
        kinds = {"coeff": coefficients, "token": self.tokens, "stage": self.stage_tokens, "adapter": adapter}
        return {f"{kind}/{name}": parameter for kind, found in kinds.items() for name, parameter in found.items()}

    def groups(self, config: TrainConfig) -> list[tuple[list[nn.Parameter], float]]:
        """Everything that learns, with the rate it learns at.

        Args:
            config: resolved settings, rates of words included (see `with_word_rates`).
        """
        assert config.token_learning_rate is not None
        assert config.stage_token_learning_rate is not None
        return [
            ([*self.coefficients.values(), *self.text_coefficients.values()], config.learning_rate),
            (list(self.tokens.values()), config.token_learning_rate),
            (list(self.stage_tokens.values()), config.stage_token_learning_rate),
            (list(self.adapter.parameters.values()) if self.adapter else [], config.adapter_learning_rate),
        ]

    def train(self, training: bool) -> None:
        """Switch the dropout of the coefficients on or off; nothing of the base has a training mode here."""
        for module in self._layers():
            module.training = training

    def _recombined(self) -> list[Any]:
        """The networks whose heads learn to be recombined."""
        return [network for network in (self.denoiser, *encoders_of(self.student).values()) if is_attached(network)]

    def _layers(self) -> list[nn.Module]:
        return [module for network in self._recombined() for module in attached_layers(network).values()]

    @contextmanager
    def as_saved(self) -> Iterator[None]:
        """What is learned, as its file has it: rounded, and without dropout. Afterwards all is as it was, bitwise."""
        modules = self._layers()
        training = [module.training for module in modules]
        learned = [parameter for name, parameter in self.parameters.items() if is_rounded(name)]
        exact = [parameter.detach().clone() for parameter in learned]
        try:
            self.train(False)
            _put([value.half().float() for value in exact], learned)
            yield
        finally:
            _put(exact, learned)
            for module, was in zip(modules, training, strict=True):
                module.training = was

    def condition(self, prompts: Sequence[str], size: tuple[int, int]) -> Conditioning:
        """See `Family.condition`, with the tokens as they are learned so far."""
        condition = self.family.condition(self.student, prompts, size)
        if not self.stage_tokens:
            return condition
        embedding = getattr(self.student, next(iter(self.tokens))).get_input_embeddings()
        assert isinstance(embedding, TriggerEmbedding)
        return {**condition, PLACES: embedding.places(str(self.info.trigger), prompts).to(self.device)}

    def framing(self, framings: Sequence[Framing]) -> Conditioning:
        """See `Family.framing`."""
        found = self.family.framing(framings) if framings else {}
        return {name: tensor.to(self.device) for name, tensor in found.items()}

    def denoise(self, noised: Tensor, timesteps: Tensor, condition: Conditioning) -> Tensor:
        """The base's prediction with what is learned so far, `[B, C, h, w]`; see `Family.predict`."""
        condition = dict(condition)
        places = condition.pop(PLACES, None)
        if places is not None:
            offsets = {stage: at_positions(vectors, places) for stage, vectors in self.stage_tokens.items()}
            set_offsets(self.denoiser, offsets)
        return self.family.predict(self.denoiser, noised.to(self.dtype), timesteps, condition)

    def snapshot(self, step: int, losses: Sequence[float], effect: Effect | None = None) -> Coefficients:
        """What is learned so far, rounded to what its file holds, as the thing that is saved and loaded.

        Args:
            step: steps done.
            losses: of these steps; the file keeps the mean of the last 50.
        """
        info = replace(
            self.info,
            train_steps=step,
            final_loss=float(f"{statistics.fmean(losses[-50:]):.6g}") if losses else None,
            effect=None if effect is None else float(f"{effect.change:.6g}"),
            strangeness=None if effect is None else effect.strangeness,
        )
        coeffs = {path: coeff for network in self._recombined() for path, coeff in collect(network).items()}
        found = Coefficients(coeffs, self.tokens, info, self.family.denoiser, self.stage_tokens).rounded()
        return found if self.adapter is None else found.joined(self.adapter.snapshot())


def _attached(network: Any, sites: Mapping[str, Site], which: CoeffConfig) -> dict[str, nn.Parameter]:
    """Let those of a network's layers learn that are asked for; none of them where none is."""
    chosen = {path: site for path, site in sites.items() if which.selects(site)}
    if not chosen:
        return {}
    attach_heads(network, chosen, dropout=which.dropout)
    return trainable_parameters(network)


@torch.no_grad()
def _put(values: Sequence[Tensor], parameters: Sequence[nn.Parameter]) -> None:
    for value, parameter in zip(values, parameters, strict=True):
        parameter.copy_(value)


def training_layers(config: TrainConfig, family: Family, base: str = "") -> CoeffConfig:
    """The attention layers that get coefficients, and how much of these is left out of a step.

    Args:
        base: its name, see `base_name`.

    Raises:
        ConfigError: a choice that this family does not know, or two of them.
    """
    name, blocks, dropout = config.layers.removesuffix("+text"), tuple(config.blocks), config.coeff_dropout
    with_text = config.layers.endswith("+text")
    if name in ("all", "self", "cross", "text"):
        return CoeffConfig(config.layers, blocks, dropout)  # type: ignore[arg-type] # it is one of these
    if name == "auto":
        light = EMBEDDED_BLOCKS if base == EMBEDDED and config.trains_stage_tokens else ()
        chosen = light or family.presets.get(family.usual_preset, ())
    elif name not in family.presets:
        known = ", ".join(("auto", "all", "self", "cross", "text", *family.presets))
        raise ConfigError([f"--layers {name} means nothing for {family.title}; it knows {known}"])
    elif blocks:
        raise ConfigError([f"--layers {name} says which blocks; leave --blocks out, or --layers"])
    else:
        chosen = family.presets[name]
    if with_text and chosen:
        chosen = (*chosen, TEXT_BLOCKS)
    return CoeffConfig("all+text" if with_text else "all", blocks or chosen, dropout)


def training_resolution(asked: int | None, pipe: Any) -> int:
    """The side of the training pictures in pixels: as asked, or what the base was trained at.

    Raises:
        ConfigError: the base cannot take pictures of that side.
    """
    family = family_of(pipe)
    side, multiple = min(family.size(pipe)) if asked is None else asked, family.training_multiple(pipe)
    if side % multiple:
        raise ConfigError([f"--resolution is {side}, expected a multiple of {multiple} for this base"])
    return int(side)


def creation_date(config: TrainConfig) -> str:
    """The date to write into the file: the given one, SOURCE_DATE_EPOCH's, or none.

    Not today's: the same seed has to give the same bytes tomorrow.
    """
    epoch = os.environ.get("SOURCE_DATE_EPOCH")
    if config.created is None and epoch:
        return datetime.fromtimestamp(int(epoch), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return config.created or ""
