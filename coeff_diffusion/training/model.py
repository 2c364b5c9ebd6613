"""A frozen base with the few numbers that learn: coefficients, the trigger's embedding, or both.

Shapes: B pictures of a batch; C, h, w channels and size of the latents; T text positions, D their width.
"""

import math
import os
import statistics
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor, nn

from .. import __version__
from ..families.fingerprint import describe_base
from ..families.load import base_name
from ..families.shared_weights import shared_copy
from ..inference.trigger import add_trigger, initial_vectors
from ..method.attachment import CoeffConfig, attach, collect, trainable_parameters
from ..method.override import CoeffAttnProcessor
from ..subject.coefficients import Coefficients
from ..subject.info import CoefficientsInfo
from .config import ConfigError, TrainConfig
from .probe import Effect

DTYPES = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class Learner:
    """A student over the weights of a pipeline. The pipeline itself is never changed, and may draw meanwhile.

    Args:
        pipe: the base, without subjects.
        config: resolved settings.
        device: where to train; weights are copied there unless they are there already.

    Attributes:
        coefficients: `[H, H]` float32 parameters by attention path; empty when only the token is trained.
        token: `[vectors, D]` float32 parameter; None when only the coefficients are trained.
        info: what is known of the subject before it is trained.
    """

    def __init__(self, pipe: StableDiffusionPipeline, config: TrainConfig, device: torch.device) -> None:
        self.device, self.dtype = device, DTYPES[config.mixed_precision]
        self.unet: Any = shared_copy(pipe.unet, device, self.dtype).eval()
        self.text_encoder: Any = shared_copy(pipe.text_encoder, device, self.dtype).eval()
        self.tokenizer: Any = pipe.tokenizer
        self.coefficients: dict[str, nn.Parameter] = {}
        self.token: nn.Parameter | None = None
        if config.trains_coefficients:
            attach(self.unet, CoeffConfig(config.layers, tuple(config.blocks), config.coeff_dropout))
            self.coefficients = trainable_parameters(self.unet)
        if config.trains_token:
            self.token = self._add_token(config)
        if config.gradient_checkpointing:
            self.unet.enable_gradient_checkpointing()
        self.info = CoefficientsInfo(
            name=str(config.name),
            trigger=str(config.trigger),
            class_word=str(config.class_word),
            instance_prompt=str(config.instance_prompt),
            class_prompt=str(config.class_prompt) if config.with_prior_preservation else "",
            base_model=base_name(pipe),
            base_revision=config.revision or "",
            **describe_base(self.unet),
            resolution=config.resolution,
            prediction_type=pipe.scheduler.config.prediction_type,
            layers=config.layers,
            blocks=tuple(config.blocks),
            seed=config.seed,
            gate=config.gate,
            license=config.license or "",
            created=creation_date(config),
            trained_with=f"coeff-diffusion {__version__}",
        )

    def _add_token(self, config: TrainConfig) -> Any:
        trigger, class_word = str(config.trigger), str(config.class_word)
        start = initial_vectors(self.tokenizer, self.text_encoder, class_word, config.num_vectors)
        self.tokenizer = add_trigger(self.tokenizer, self.text_encoder, trigger, trigger, start, trainable=True)
        return self.text_encoder.get_input_embeddings().vectors[trigger]

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """Everything that learns, by a name that is the same in every run."""
        found = {f"coeff/{path}": parameter for path, parameter in self.coefficients.items()}
        return found if self.token is None else {**found, "token": self.token}

    def train(self, training: bool) -> None:
        """Switch the dropout of the coefficients on or off; nothing of the base has a training mode here."""
        for module in self.unet.modules():
            if isinstance(getattr(module, "processor", None), CoeffAttnProcessor):
                module.training = training

    def denoise(self, noised: Tensor, timesteps: Tensor, embeddings: Tensor) -> Tensor:
        """The base's prediction with what is learned so far, `[B, C, h, w]`.

        Args:
            noised: `[B, C, h, w]`; timesteps: `[B]`; embeddings: `[B, T, D]`.
        """
        prediction: Tensor = self.unet(
            noised.to(self.dtype), timesteps, encoder_hidden_states=embeddings.to(self.dtype), return_dict=False
        )[0]
        return prediction

    def snapshot(self, step: int, losses: Sequence[float], effect: Effect | None = None) -> Coefficients:
        """What is learned so far, as the thing that is saved and loaded.

        Args:
            step: steps done.
            losses: of these steps; the file keeps the mean of the last 50.
        """
        info = replace(
            self.info,
            train_steps=step,
            final_loss=float(f"{statistics.fmean(losses[-50:]):.6g}") if losses else None,
            effect=None if effect is None else float(f"{effect.change:.6g}"),
        )
        tokens = {} if self.token is None else {"text_encoder": self.token.detach().float().cpu().clone()}
        return Coefficients(collect(self.unet) if self.coefficients else {}, tokens, info)


def training_resolution(asked: int | None, pipe: StableDiffusionPipeline) -> int:
    """The side of the training pictures in pixels: as asked, or what the base was trained at.

    Raises:
        ConfigError: the base cannot take pictures of that side.
    """
    size = pipe.unet.config.sample_size
    side = (size if isinstance(size, int) else min(size)) * pipe.vae_scale_factor if asked is None else asked
    # 8 is what diffusers' pipeline, which draws the previews, insists on.
    multiple = math.lcm(pipe.vae_scale_factor * 2 ** (len(pipe.unet.config.block_out_channels) - 1), 8)
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
