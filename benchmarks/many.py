"""Many subjects at once, on the embedded base: how much faster than one after another, in training and in drawing.

    python benchmarks/many.py                     # about 40 minutes on two cores
    python benchmarks/many.py --part draw --repeats 7

Training: the steps of S subjects in one batch against those of S trainings, and the losses of both. Drawing: a picture
for each of 16 users, each with a subject of their own: in one batch, against one by one with a switch in between, and
against LoRA adapters of rank 4 in PEFT, switched and in its mixed batches. Serving: the same as requests to what
`serve` draws with, subjects read from files and loaded included. In turns, compared turn by turn.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from timing import in_turns, machine

from coeff_diffusion import (
    Coefficients,
    CoefficientsInfo,
    describe_base,
    layer_heads,
    load_base,
    load_coefficients,
    set_coefficients,
)
from coeff_diffusion.families.shared_weights import shared_copy, shared_pipeline
from coeff_diffusion.inference.request import DrawRequest
from coeff_diffusion.inference.studio import Studio
from coeff_diffusion.method.sites import find_sites, text_stages
from coeff_diffusion.serving.shared_batches import Drawn, SharedBatches
from coeff_diffusion.sources.library import Library
from coeff_diffusion.training.config import TrainConfig
from coeff_diffusion.training.many_config import many_settings
from coeff_diffusion.training.many_denoiser import SharedDenoiser
from coeff_diffusion.training.many_trainer import summed_losses
from coeff_diffusion.training.trainer import Trainer

EXAMPLES = Path(__file__).parents[1] / "examples" / "subjects"
PARTS = ["train", "rows", "draw", "serve"]
LORA = ["to_q", "to_k", "to_v", "to_out.0"]

# --- training ---------------------------------------------------------------------------------------------------------


def make_trainers(pipe: Any, count: int, batch_size: int, folder: Path) -> tuple[list[Trainer], float]:
    """Trainers of the example subjects, in turn, each with a seed of its own; and the seconds that one takes."""
    names = sorted(path.name for path in EXAMPLES.iterdir() if path.is_dir())
    trainers, started = [], time.perf_counter()
    for number in range(count):
        config: TrainConfig = many_settings(
            instance_data_dir=str(EXAMPLES / names[number % len(names)]),
            class_word=names[number % len(names)].replace("_", " "),
            train_batch_size=batch_size,
            seed=number,
            output_dir=str(folder / str(number)),
            max_train_steps=10_000,
        )
        trainer = Trainer(config, pipe, say=lambda line: None)
        trainer.prepare(None)
        trainer.learner.train(True)
        trainers.append(trainer)
    return trainers, (time.perf_counter() - started) / count


def alone(trainers: Sequence[Trainer], steps: int) -> None:
    """The steps of one subject after the other."""
    for trainer in trainers:
        for _ in range(steps):
            started = time.monotonic()
            trainer.learned(trainer.train_step(), started)


def together(shared: SharedDenoiser, trainers: Sequence[Trainer], steps: int) -> None:
    """The steps of all subjects at once."""
    for _ in range(steps):
        started = time.monotonic()
        totals = summed_losses(shared, trainers, trainers[0].config.gradient_accumulation_steps)
        for trainer, total in zip(trainers, totals, strict=True):
            trainer.learned(trainer.optimization.apply(total), started)


def measure_training(pipe: Any, args: argparse.Namespace) -> None:
    """Print a row for each number of subjects and of pictures a step."""
    print("| training | one after another | in one batch | ratio | subjects an hour | losses differ by |")
    print("| --- | --- | --- | --- | --- | --- |", flush=True)
    for batch_size in args.train_batch_size:
        for count in args.subjects:
            with tempfile.TemporaryDirectory() as folder:
                ones, prepared = make_trainers(pipe, count, batch_size, Path(folder) / "alone")
                many, _ = make_trainers(pipe, count, batch_size, Path(folder) / "together")
                shared = SharedDenoiser(pipe, many[0].learner, many[0].config.coeff_dropout)
                ways = {
                    "alone": partial(alone, ones, args.steps),
                    "together": partial(together, shared, many, args.steps),
                }
                found = in_turns(ways, args.repeats)
            step = {name: timing.median / args.steps for name, timing in found.items()}
            hourly = {name: 3600 * count / (count * prepared + 300 * seconds) for name, seconds in step.items()}
            pairs = [
                pair
                for one, other in zip(ones, many, strict=True)
                for pair in zip(one.losses, other.losses, strict=True)
            ]
            differ = max(abs(first - second) / first for first, second in pairs)
            times = f"{step['alone']:.2f} s | {step['together']:.2f} s"
            print(
                f"| {count} subjects, {batch_size} pictures a step | {times} | "
                f"{found['together'].ratio:.2f} | {hourly['alone']:.1f} -> {hourly['together']:.1f} | {differ:.1e} |",
                flush=True,
            )


def measure_rows(pipe: Any, args: argparse.Namespace) -> None:
    """Print what a picture costs by how many there are: where this is level, no batch can be faster."""
    unet = shared_copy(pipe.unet)
    text = torch.zeros(1, 1, device=unet.device, requires_grad=True)  # so that there is something to differentiate
    config = unet.config

    def step(noised: torch.Tensor, prompts: torch.Tensor) -> None:
        unet(noised, 500, encoder_hidden_states=prompts + text, return_dict=False)[0].square().mean().backward()

    ways = {}
    for rows in args.rows:
        noised = torch.randn(rows, config.in_channels, config.sample_size, config.sample_size, device=unet.device)
        prompts = torch.randn(rows, pipe.tokenizer.model_max_length, config.cross_attention_dim, device=unet.device)
        ways[str(rows)] = partial(step, noised, prompts)
    found = in_turns(ways, args.repeats)
    print("\n| the UNet alone, forward and backward, pictures at once | a picture |\n| --- | --- |")
    for rows, timing in found.items():
        print(f"| {rows} | {1000 * timing.median / int(rows):.0f} ms |", flush=True)


# --- drawing ----------------------------------------------------------------------------------------------------------


def make_subject(pipe: Any, number: int) -> Coefficients:
    """A subject of random numbers with all that a trained one has."""
    generator = torch.Generator().manual_seed(number)
    width = pipe.unet.config.cross_attention_dim
    coeffs = {path: 0.1 * torch.randn(n, n, generator=generator) for path, n in layer_heads(pipe.unet).items()}
    stages = {
        stage: 0.1 * torch.randn(1, width, generator=generator) for stage in text_stages(find_sites(pipe.unet).values())
    }
    info = CoefficientsInfo(name=f"user{number}", trigger=f"user{number} dog", **describe_base(pipe.unet))
    return Coefficients(coeffs, {"text_encoder": torch.randn(1, width, generator=generator)}, info, "unet", stages)


def with_subjects(base: Any, users: int) -> Any:
    """The base with a subject for each user."""
    pipe = shared_pipeline(base)
    for number in range(users):
        load_coefficients(pipe, make_subject(pipe, number), name=f"user{number}")
    return pipe


def with_adapters(base: Any, users: int) -> tuple[Any, Any]:
    """The base with a LoRA for each user, and PEFT's model around its UNet."""
    pipe = shared_pipeline(base)
    config = LoraConfig(r=4, lora_alpha=4, target_modules=LORA, init_lora_weights=False)
    model = get_peft_model(pipe.unet, config, adapter_name="user0")
    for number in range(1, users):
        model.add_adapter(f"user{number}", config)
    return pipe, model.eval()


def draw(pipe: Any, prompts: Sequence[str], steps: int) -> None:
    pipe.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(number) for number in range(len(prompts))]
    pipe(list(prompts), num_inference_steps=steps, generator=generators, output_type="latent")


def measure_drawing(base: Any, args: argparse.Namespace) -> None:
    """Print pictures a second of each way."""
    users = [f"user{number}" for number in range(args.users)]
    prompts = [f"a {user} dog on grass" for user in users]
    subjects, (adapters, model) = with_subjects(base, args.users), with_adapters(base, args.users)
    steps = args.drawing_steps

    def one_by_one() -> None:
        for user, prompt in zip(users, prompts, strict=True):
            set_coefficients(subjects, {user: 1.0})
            draw(subjects, [prompt], steps)

    def in_one_batch() -> None:
        set_coefficients(subjects, per_sample=[{user: 1.0} for user in users])
        draw(subjects, prompts, steps)

    def adapters_one_by_one() -> None:
        for user, prompt in zip(users, prompts, strict=True):
            model.set_adapter(user)
            draw(adapters, [prompt], steps)

    def adapters_in_one_batch() -> None:
        names = [*users, *users]  # with guidance
        with model.base_model._enable_peft_forward_hooks(adapter_names=names):
            draw(adapters, prompts, steps)

    ways: Mapping[str, Callable[[], object]] = {
        "subjects, switched one by one": one_by_one,
        "subjects, in one batch": in_one_batch,
        "LoRA rank 4 in PEFT, switched one by one": adapters_one_by_one,
        "LoRA rank 4 in PEFT, in one mixed batch": adapters_in_one_batch,
    }
    found = in_turns(ways, args.repeats)
    print(f"\n| {args.users} users, {steps} steps | pictures a second | times the first |\n| --- | --- | --- |")
    for name, timing in found.items():
        print(f"| {name} | {args.users / timing.median:.2f} | {1 / timing.ratio:.2f} |", flush=True)


def measure_serving(base: Any, args: argparse.Namespace) -> None:
    """Print pictures a second of what `serve` draws with, of requests that all came at once."""
    steps, users = args.drawing_steps, [f"user{number}" for number in range(args.users)]
    requests = [
        DrawRequest(f"a {user} dog on grass", subjects={user: 1.0}, seed=number, steps=steps)
        for number, user in enumerate(users)
    ]
    with tempfile.TemporaryDirectory() as folder:
        for number, user in enumerate(users):
            make_subject(base, number).save(Path(folder) / f"{user}.safetensors")
        ways = {}
        for most in (1, 4, args.users):
            batches = SharedBatches(Studio(shared_pipeline(base)), Library(folder), most)
            assert all(isinstance(one, Drawn) for one in batches.draw(requests))
            ways[str(most)] = partial(batches.draw, requests)
        found = in_turns(ways, args.repeats)
    print(f"\n| serve, {args.users} users, {steps} steps, pictures at once | pictures a second | times the first |")
    print("| --- | --- | --- |")
    for most, timing in found.items():
        print(f"| {most} | {args.users / timing.median:.2f} | {1 / timing.ratio:.2f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--subjects", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--train_batch_size", type=int, nargs="+", default=[4, 1], help="pictures of each in a step")
    parser.add_argument(
        "--rows", type=int, nargs="+", default=[1, 2, 4, 8, 16, 64], help="pictures at once of the UNet"
    )
    parser.add_argument("--steps", type=int, default=2, help="of each subject in a turn")
    parser.add_argument("--users", type=int, default=16)
    parser.add_argument("--drawing_steps", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    torch.manual_seed(0)
    base = load_base(device="auto")
    print(f"{machine()}; medians of {args.repeats}, ratios turn by turn\n")
    if "train" in args.part:
        measure_training(base, args)
    if "rows" in args.part:
        measure_rows(base, args)
    if "draw" in args.part:
        measure_drawing(base, args)
    if "serve" in args.part:
        measure_serving(base, args)


if __name__ == "__main__":
    main()
