"""What stands between subjects and their pictures: what the autoencoder loses, and which stages' tokens matter.

    python benchmarks/fidelity.py --method every_stage --seeds 1 --sweep_subjects 0 && python benchmarks/limits.py

For each subject: how much of the way from the base's pictures of the class to the unseen pictures' own similarity these
go once they were through the autoencoder; and by how much the loss on them rises without the token of one stage, or
without the coefficients of self- or cross-attention. Takes the settings of the first command.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_img2img import retrieve_latents
from features import FeatureExtractor
from fidelity_measure import Measurement, SubjectPictures
from fidelity_methods import Trained, loaded
from fidelity_plan import Run, read_results
from fidelity_settings import NOTHING, BenchmarkError, Settings
from PIL import Image
from torch import Tensor

from coeff_diffusion import Coefficients
from coeff_diffusion.cli import guarded, parse
from coeff_diffusion.families.load import load_base
from coeff_diffusion.images.photo import read_image
from coeff_diffusion.training.photos import View, view_tensor

METHOD = "every_stage"


def through_autoencoder(pipe: Any, images: Sequence[Image.Image]) -> float:
    """Mean similarity of the pictures with each other, one of each pair once encoded and decoded."""
    pixels = torch.stack([view_tensor(image, image.size, View(0, 0)) for image in images])
    with torch.no_grad():
        latents = retrieve_latents(pipe.vae.encode(pixels), sample_mode="argmax")
        decoded = pipe.vae.decode(latents).sample.clamp(-1, 1)
    extract, others = FeatureExtractor(), ~torch.eye(len(images), dtype=torch.bool)
    return float((extract(decoded) @ extract(images).T)[others].mean())


def without(subject: Coefficients) -> Iterator[tuple[str, Coefficients]]:
    """The subject, and the subject without each of its parts."""

    def kept(found: Mapping[str, Tensor], lost: str) -> dict[str, Tensor]:
        return {name: torch.zeros_like(one) if lost in name else one for name, one in found.items()}

    coeffs, tokens = dict(subject.items()), dict(subject.tokens)
    yield "nothing", subject
    for stage in subject.stage_tokens:
        rest = kept(subject.stage_tokens, stage)
        yield f"the token of {stage}", Coefficients(coeffs, tokens, subject.info, subject.denoiser, rest)
    for kind, lost in (("self", "attn1"), ("cross", "attn2")):
        rest = kept(coeffs, lost)
        yield (
            f"the coefficients of {kind}-attention",
            Coefficients(rest, tokens, subject.info, subject.denoiser, subject.stage_tokens),
        )


def main() -> int:
    settings = parse("limits", Settings, sys.argv[1:]).resolve()
    results, pipe = read_results(Path(settings.output_dir) / "results.jsonl"), load_base(settings.base)
    for subject in settings.subject:
        pictures = SubjectPictures.find(settings, subject)
        run, base = Run.make(settings, METHOD, subject), results.get(Run.make(settings, NOTHING, subject))
        file = Path(settings.output_dir) / "files" / f"{run.stem}.safetensors"
        if base is None or not file.is_file():
            raise BenchmarkError(f"{subject} was not taught in {settings.output_dir}; run fidelity.py first")
        unseen = [read_image(path).convert("RGB") for path in pictures.unseen]
        way = (through_autoencoder(pipe, unseen) - base["similarity"]) / (base["ceiling"] - base["similarity"])
        print(f"{subject}: once through the autoencoder {way:.0%} of the way", flush=True)
        whole, scratch = None, file.with_suffix(".part")
        for lost, part in without(Coefficients.load(file)):
            part.save(scratch)
            with loaded(pipe, run, Trained(scratch, {})) as name:
                words = pictures.words(METHOD)
                loss = Measurement(run, settings, pipe, name).loss(pictures.unseen, [words] * len(pictures.unseen))
            whole = loss if whole is None else whole
            print(f"  without {lost}: {loss:.4f} ({loss - whole:+.4f})", flush=True)
        scratch.unlink()
    return 0


if __name__ == "__main__":
    sys.exit(guarded(main))
