"""Train a subject in each of the compared ways and keep what is learned as the file that a user would get.

The library's methods are trained by its own `Trainer`. LoRA and full tuning run through the very same code, pictures,
noise and optimizer; only the parameters are others.
"""

import gc
import json
import resource
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import torch
import yaml
from diffusers import StableDiffusionPipeline
from fidelity_plan import Run
from fidelity_settings import METHODS, OURS, WITH_STAGE_TOKENS, Method, Settings
from peft import LoraConfig, get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import nn

from coeff_diffusion.inference.studio import Studio
from coeff_diffusion.method.attachment import detach, select_layers
from coeff_diffusion.subject.atomic_write import atomic_write
from coeff_diffusion.training.config import TrainConfig
from coeff_diffusion.training.dataset import Prompts
from coeff_diffusion.training.optimizer import Optimizer
from coeff_diffusion.training.reports import own_random_state
from coeff_diffusion.training.seeds import mixed_seed
from coeff_diffusion.training.trainer import Trainer

TRAINED = {method: "coefficients+token" if method in WITH_STAGE_TOKENS else method for method in OURS}
PROJECTIONS = ["to_q", "to_k", "to_v", "to_out.0"]


@dataclass(frozen=True)
class Trained:
    """What a training left: the file, and what it cost."""

    file: Path
    figures: dict[str, Any]


class BaselineTrainer(Trainer):
    """A training run of the library in which LoRA layers or the attention weights learn instead of coefficients."""

    def __init__(self, config: TrainConfig, pipe: StableDiffusionPipeline, method: Method) -> None:
        super().__init__(config, pipe, say=_silent)
        self.method = method

    def setup(self) -> None:
        super().setup()
        unet = self.learner.denoiser
        detach(unet)
        torch.manual_seed(mixed_seed(self.config.seed, -4))
        networks = {"unet": unet, "text_encoder": self.learner.student.text_encoder}
        rank, tuned = self.method.rank, self.method.tuned
        self.learner.coefficients = lora(unet, rank) if rank else own_weights(networks, tuned)
        if "text_encoder" in tuned:
            prompts = self.data.prompts
            anew = Prompts(prompts.encode, prompts.texts, [True] * len(prompts))  # read in each step, not once
            self.data = replace(self.data, prompts=anew)
        self.optimization = Optimizer(self.learner.groups(self.config), self.config, self.device)


def lora(unet: Any, rank: int) -> dict[str, nn.Parameter]:
    """Add LoRA layers to every attention projection, with PEFT's own start (diffusers' "gaussian" hardly moves A).

    They learn in float32, also in a base of half precision, where small updates would round to none.
    """
    unet.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=PROJECTIONS))
    found = {name: weight for name, weight in unet.named_parameters() if weight.requires_grad}
    for weight in found.values():
        weight.data = weight.data.float()
    return found


def own_weights(networks: Mapping[str, nn.Module], tuned: str) -> dict[str, nn.Parameter]:
    """Copies of the weights that are to learn, in place of the frozen ones that are shared with the base.

    Args:
        networks: by name.
        tuned: see `Method`.

    Returns:
        the weights, with their network's name in front.
    """
    if tuned == "attention":
        chosen = {f"unet.{path}": attn for path, attn in select_layers(networks["unet"]).items()}
    else:
        chosen = {name: networks[name] for name in tuned.split("+")}
    found = {}
    for path, part in chosen.items():
        for owner, module in part.named_modules():
            for name, weight in list(module.named_parameters(recurse=False)):
                own = nn.Parameter(weight.detach().clone())
                setattr(module, name, own)
                found[".".join(one for one in (path, owner, name) if one)] = own
    return found


def train_config(run: Run, settings: Settings, output_dir: str, **chosen: Any) -> TrainConfig:
    """The settings of a training: the library's defaults, without what is only for watching.

    Args:
        chosen: what this training learns, and how fast.
    """
    folder = Path(settings.subjects_dir) / run.subject
    about = yaml.safe_load((folder / "subject.yaml").read_text(encoding="utf-8"))
    return TrainConfig(
        instance_data_dir=str(folder),
        facing="as_is",  # as the figures in docs/ were taken
        class_word=about["class_word"],
        trigger=about["trigger"],
        max_train_steps=run.steps,
        train_batch_size=run.batch,
        seed=run.seed,
        validation_steps=0,
        timeline_steps=0,
        output_dir=output_dir,
        **chosen,
    ).resolve()


def chosen(run: Run) -> dict[str, Any]:
    """What a method learns, and how fast, as settings of `train`."""
    return {
        "train": TRAINED.get(run.method, "coefficients"),
        "layers": "auto" if run.method == "all" else "all",
        "stage_tokens": run.method in WITH_STAGE_TOKENS,
        "use_ema": run.method in WITH_STAGE_TOKENS,  # as usual; others are compared as they are
        **dict(zip(_rate_names(run.method), run.rates, strict=True)),
    }


def _rate_names(method: str) -> list[str]:
    if method == "token":
        return ["token_learning_rate"]
    names = ["learning_rate", "token_learning_rate", "stage_token_learning_rate"]
    return names if method in WITH_STAGE_TOKENS else names[: len(METHODS[method].start)]


def train(run: Run, settings: Settings, pipe: StableDiffusionPipeline) -> Trained:
    """Train, or take what an earlier run of the search has trained.

    Raises:
        TrainingError: the loss broke up. CoefficientsError: what was learned did.
    """
    file = Path(settings.output_dir) / "files" / f"{run.stem}.safetensors"
    noted = file.with_suffix(".json")  # written last
    if not noted.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as scratch:
            figures = _train(run, train_config(run, settings, scratch, **chosen(run)), pipe, file)
        with atomic_write(noted) as target:
            target.write(json.dumps(figures).encode())
    return Trained(file, {**json.loads(noted.read_text()), "file_bytes": file.stat().st_size})


def _train(run: Run, config: TrainConfig, pipe: StableDiffusionPipeline, file: Path) -> dict[str, Any]:
    method, meter = METHODS[run.method], Meter()
    trainer = Trainer(config, pipe, say=_silent) if run.method in OURS else BaselineTrainer(config, pipe, method)
    with own_random_state():
        trainer.setup()
        with meter:
            trainer.fit()
    learner = trainer.learner
    if run.method in OURS:
        trainer.snapshot().save(file)
    elif method.rank:
        layers = get_peft_model_state_dict(learner.denoiser)
        StableDiffusionPipeline.save_lora_weights(file.parent, unet_lora_layers=layers, weight_name=file.name)
    else:
        save_file({name: weight.detach().cpu() for name, weight in learner.coefficients.items()}, file)
    return {"values": sum(weight.numel() for weight in learner.parameters.values()), **meter.figures}


@contextmanager
def loaded(pipe: StableDiffusionPipeline, run: Run, trained: Trained | None) -> Iterator[str | None]:
    """The base with what was learned, from its file. Yields the subject's name where it is one of the library's.

    The pipeline is used up by LoRA and full tuning: a run has one to itself.
    """
    if trained is None:
        yield None
    elif run.method in OURS:
        studio = Studio(pipe)
        name = studio.load(trained.file)
        yield name
        studio.unload(name)
    elif METHODS[run.method].rank:
        pipe.load_lora_weights(trained.file.parent, weight_name=trained.file.name)
        yield None
    else:
        weights = load_file(trained.file)
        for network in {name.partition(".")[0] for name in weights}:
            own = {name.partition(".")[2]: one for name, one in weights.items() if name.startswith(f"{network}.")}
            outcome = getattr(pipe, network).load_state_dict(own, strict=False)
            assert not outcome.unexpected_keys
        yield None


class Meter:
    """Seconds and peak memory of what happens inside.

    Memory is the process's peak of resident memory, weights and libraries included. Where the system allows it
    (Linux), the mark is reset first, so that a higher peak while the base was loaded does not hide it.
    """

    def __enter__(self) -> Self:
        gc.collect()
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        self.started = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        gpu = torch.cuda.is_available()
        if gpu:
            torch.cuda.synchronize()
        self.figures = {"seconds": time.perf_counter() - self.started, "memory_mb": peak_memory() / 1e6}
        if gpu:
            self.figures["gpu_memory_mb"] = torch.cuda.max_memory_allocated() / 1e6


def peak_memory() -> float:
    """Peak resident memory of this process in bytes."""
    status = Path("/proc/self/status")
    if status.is_file():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return 1024 * float(line.split()[1])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(peak if sys.platform == "darwin" else 1024 * peak)


def _silent(line: str) -> None:
    """The benchmark speaks for all its runs."""
