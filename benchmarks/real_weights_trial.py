"""One way of the comparison on a real base: its settings, its training, what is measured of it.

The measures are those of PEFT's `method_comparison/image-gen` (see `real_weights_protocol`), with CLIP beside DINOv2.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from fidelity_methods import BaselineTrainer
from fidelity_settings import BenchmarkError, Method
from peft import get_peft_model_state_dict
from PIL import Image
from real_weights_measure import Features
from real_weights_protocol import PRECISIONS, Example, Protocol, Split
from real_weights_row import Row, meta_info, plain

from coeff_diffusion import __version__
from coeff_diffusion.families.load import load_base
from coeff_diffusion.families.registry import denoiser_of
from coeff_diffusion.inference.gating import Gate
from coeff_diffusion.inference.request import DrawRequest
from coeff_diffusion.inference.studio import Studio
from coeff_diffusion.training.config import TrainConfig
from coeff_diffusion.training.reports import StepReport, own_random_state
from coeff_diffusion.training.trainer import Trainer

TEST_REPEATS = 3
SEEN, UNSEEN = 100_000, 100_000_000  # the protocol's distance from the seeds of training: of the subject, of the drift
LORA = "lora"
WAYS: dict[str, dict[str, Any]] = {
    "coefficients+token": {"train": "coefficients+token"},
    "coefficients": {"train": "coefficients"},
    LORA: {"train": "coefficients"},  # whose place the LoRA takes
}


@dataclass(frozen=True)
class Settings:
    """Compare coefficients and LoRA on a real base by the protocol of PEFT's image generation benchmark."""

    protocol: str = ""
    """The protocol's file: default_training_params.json of method_comparison/image-gen in PEFT's repository."""
    base: str = "stable-diffusion-v1-5/stable-diffusion-v1-5"
    """The base: a diffusers folder, a single checkpoint or a Hub id, of Stable Diffusion 1.x, 2.x or XL."""
    way: list[str] = field(default_factory=list)
    """coefficients+token (what `train` does), coefficients, or lora; give it again for more. Default: all."""
    dataset: str | None = None
    """Its pictures: a folder, in the order of their names, or a data set on the Hub. Default: the protocol's."""
    dino_model: str | None = None
    """A DINOv2 of transformers: a folder or a Hub id. Default: the protocol's."""
    clip_model: str = "openai/clip-vit-large-patch14"
    """A CLIP of transformers: a folder or a Hub id."""
    trigger: str = "sks cat"
    """What calls the subject up in the protocol's captions."""
    class_word: str = "cat"
    """What the subject is."""
    lora_rank: int = 32
    """Of the LoRA, whose alpha is the same. It learns at the protocol's own rate."""
    resolution: int | None = None
    """Side of all pictures in pixels. Default: the protocol's."""
    max_train_steps: int | None = None
    """Updates of every training. Default: the protocol's."""
    device: Literal["auto", "cpu"] = "auto"
    """Where to run: on the GPU where there is one, or on the CPU in any case."""
    output_dir: str = "outputs/real_weights"
    """Where results, files and sample pictures go."""

    def ways(self) -> list[str]:
        """What is asked for.

        Raises:
            BenchmarkError: no such way, or no such rank.
        """
        if unknown := [way for way in self.way if way not in WAYS]:
            raise BenchmarkError(f"there is no way {unknown[0]!r}; there is {', '.join(WAYS)}")
        if self.lora_rank < 1:
            raise BenchmarkError(f"--lora_rank is {self.lora_rank}, expected at least 1")
        return [way for way in WAYS if not self.way or way in self.way]

    @property
    def folder(self) -> Path:
        """Of this base."""
        return Path(self.output_dir) / Path(self.base).name


class Trial:
    """One way: its training, what is measured on the way, and what comes out of it.

    Args:
        split: the pictures; those to train on lie in `training`.
    """

    def __init__(
        self, way: str, settings: Settings, protocol: Protocol, split: Split, training: Path, features: Features
    ) -> None:
        self.way, self.settings, self.protocol, self.split, self.features = way, settings, protocol, split, features
        self.started, self.began = datetime.now(UTC), time.perf_counter()
        self.config = self._config(training)
        pipe = load_base(settings.base, dtype=protocol.dtype, device=features.device)
        self.total = sum(weight.numel() for weight in denoiser_of(pipe).parameters())
        self.trainer = (
            BaselineTrainer(self.config, pipe, Method("LoRA", rank=settings.lora_rank))
            if way == LORA
            else Trainer(self.config, pipe, say=lambda line: None)
        )
        self.trainer.on_step = self._on_step
        self.gpu = features.device.type == "cuda"
        self.memory: list[int] = []  # reserved after each step
        self.peak, self.measuring = 0, 0.0  # bytes, seconds
        self.metrics: list[dict[str, Any]] = []

    def _config(self, training: Path) -> TrainConfig:
        protocol, rates = self.protocol, {}
        if self.way == LORA:
            kwargs = protocol.optimizer_kwargs
            rates = {"learning_rate": kwargs["lr"], "adam_weight_decay": kwargs["weight_decay"]}
        return TrainConfig(
            instance_data_dir=str(training),
            trigger=self.settings.trigger,
            class_word=self.settings.class_word,
            resolution=protocol.resolution,
            cached_views=1,
            mixed_precision=PRECISIONS[protocol.dtype],
            gradient_checkpointing=protocol.use_gc,
            max_train_steps=protocol.max_steps,
            train_batch_size=protocol.batch_size,
            max_grad_norm=protocol.grad_norm_clip,
            seed=protocol.seed,
            validation_steps=0,
            timeline_steps=0,
            output_dir=str(training.parent),
            **WAYS[self.way],
            **rates,
        ).resolve()

    def row(self) -> Row:
        """Train and measure."""
        file = self._train()
        values = sum(weight.numel() for weight in self.trainer.learner.parameters.values())
        self._finish()
        log = self.memory or [0]
        row: Row = {
            "run_info": {
                "created_at": self.started.isoformat(timespec="seconds"),
                "total_time": time.perf_counter() - self.began,
                "experiment_name": f"{'lora' if self.way == LORA else 'coeff'}/{self.settings.folder.name}-{self.way}",
                "peft_branch": "none",
                "train_config": self.protocol.whole,
                "peft_config": self._method(),
                "error_msg": "",
            },
            "train_info": {
                "accelerator_memory_reserved_avg": int(np.mean(log)),
                "accelerator_memory_max": self.peak,
                "accelerator_memory_reserved_99th": int(np.percentile(log, 99)),
                "train_time": self.train_time,
                "file_size": file.stat().st_size,
                "num_trainable_params": values,
                "num_total_params": self.total + values,
                "status": "success",
                "metrics": self.metrics,
            },
            "meta_info": meta_info(self.settings.base, self.protocol.dataset_id),
        }
        return {part: plain(said) for part, said in row.items()}

    def _method(self) -> dict[str, Any]:
        if self.way == LORA:
            found: dict[str, Any] = self.trainer.learner.denoiser.peft_config["default"].to_dict()
            return {**found, "peft_type": "LORA"}
        told = ("train", "layers", "stage_tokens", "coeff_dropout", "num_vectors")
        rates = ("learning_rate", "token_learning_rate", "stage_token_learning_rate", "adam_weight_decay")
        settings = {name: asdict(self.config)[name] for name in (*told, *rates)}
        return {"peft_type": "COEFF_TUNING", "coeff_diffusion_version": __version__, **settings}

    # --- training -----------------------------------------------------------------------------------------------------

    def _train(self) -> Path:
        """Returns the file of what was learned."""
        started = time.perf_counter()
        with own_random_state():
            self.trainer.setup()
            self._reset_peak()
            self.trainer.fit()
        self.train_time = time.perf_counter() - started - self.measuring
        self._note_peak()
        learner, folder = self.trainer.learner, self.settings.folder / "files" / self.way
        folder.mkdir(parents=True, exist_ok=True)
        if self.way != LORA:
            self.trainer.snapshot().save(folder / "coefficients.safetensors")
            return folder / "coefficients.safetensors"
        layers, name = get_peft_model_state_dict(learner.denoiser), "pytorch_lora_weights.safetensors"
        type(learner.student).save_lora_weights(folder, unet_lora_layers=layers, weight_name=name)
        return folder / name

    def _on_step(self, report: StepReport) -> None:
        if self.gpu:
            self.memory.append(torch.cuda.memory_reserved())
        if report.step % self.protocol.eval_steps == 0:
            self._note_peak()
            started = time.perf_counter()
            found = self.likeness(self.split.valid, 1)
            self.metrics.append(
                {
                    "step": report.step,
                    **{f"valid {name}": value for name, value in found.items()},
                    **self._so_far(report.step),
                    "eval time": time.perf_counter() - started,
                    "elapsed time": time.perf_counter() - self.began,
                }
            )
            print(f"{self.way}, step {report.step}: {found}", flush=True)
            self.measuring += time.perf_counter() - started
            self._reset_peak()

    def _so_far(self, step: int) -> dict[str, Any]:
        losses = self.trainer.losses[-self.protocol.eval_steps :]
        return {"train loss": float(np.mean(losses)), "train samples": step * self.protocol.batch_size}

    def _note_peak(self) -> None:
        if self.gpu:
            self.peak = max(self.peak, torch.cuda.max_memory_reserved())

    def _reset_peak(self) -> None:
        """What measuring took is no memory of the training."""
        if self.gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    # --- measuring ----------------------------------------------------------------------------------------------------

    @contextmanager
    def _acting(self) -> Iterator[tuple[Studio, dict[str, float]]]:
        """What draws with what is learned by now, and the subjects to ask for."""
        if self.way == LORA:
            yield Studio(self.trainer.learner.student), {}
            return
        studio = self.trainer.studio
        name = studio.load(self.trainer.snapshot(), name="subject")
        try:
            yield studio, {name: 1.0}
        finally:
            studio.unload(name)

    def _draw(
        self, studio: Studio, subjects: dict[str, float], prompts: Sequence[str], seed: int, gate: Gate | None = None
    ) -> list[Image.Image]:
        """A picture of each prompt, each of the next seed."""
        protocol, side = self.protocol, self.protocol.resolution
        common = DrawRequest(
            "",
            subjects=subjects,
            gate=gate,
            steps=protocol.num_inference_steps,
            guidance_scale=protocol.guidance_scale,
            width=side,
            height=side,
        )
        pictures = []
        for number, prompt in enumerate(prompts):
            (drawn,) = studio.draw(replace(common, prompt=prompt, seed=seed + number))
            pictures.append(drawn.image)
        return pictures

    def likeness(self, examples: Sequence[Example], repeats: int) -> dict[str, float]:
        """Of pictures of the same captions, each drawn so many times."""
        prompts = [one.prompt for one in examples] * repeats
        with self._acting() as (studio, subjects):
            drawn = self._draw(studio, subjects, prompts, self.protocol.seed + SEEN)
        return self.features.likeness(drawn, [one.picture for one in examples] * repeats, prompts)

    def _finish(self) -> None:
        """The test, the drift and the sample pictures."""
        protocol = self.protocol
        alike = self.likeness(self.split.test, TEST_REPEATS)
        found: dict[str, Any] = {f"test {name}": value for name, value in alike.items()}
        prompts, seed = protocol.drift_image_prompts, protocol.seed + UNSEEN
        by_base = self._draw(self.trainer.studio, {}, prompts, seed)
        with self._acting() as (studio, subjects):
            drawn = self._draw(studio, subjects, prompts, seed, "always" if subjects else None)
            found["drift"] = found["drift as shipped"] = self.features.drift(drawn, by_base)
            if subjects:  # which act where their word is; with the gate open on every prompt, as a LoRA does
                drawn = self._draw(studio, subjects, prompts, seed)
                found["drift as shipped"] = self.features.drift(drawn, by_base)
            samples = self._draw(studio, subjects, protocol.sample_image_prompts, protocol.seed + SEEN)
        folder = self.settings.folder / "samples"
        folder.mkdir(parents=True, exist_ok=True)
        for number, picture in enumerate(samples, start=1):
            picture.save(folder / f"{self.way}-{number:02d}.png")
        self.metrics.append({"step": protocol.max_steps, **found, **self._so_far(protocol.max_steps)})
