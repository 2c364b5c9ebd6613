"""`coeff-diffusion info`: what a subject's file, or a drawn picture, says about itself."""

from collections.abc import Mapping
from pathlib import Path

from .coefficients import Coefficients
from .files import locate
from .pictures import read_parameters


def describe(path: str | Path) -> str:
    """A few aligned lines about a subject (`.safetensors`) or about how a picture (`.png`) was drawn.

    Raises:
        CoefficientsError, PictureError: the file is not what its name says.
    """
    return describe_picture(path) if Path(path).suffix.lower() == ".png" else describe_subject(path)


def describe_subject(source: str | Path) -> str:
    """Trigger, base, prompts, training and size of a subject (file, folder or Hub id)."""
    path = locate(source)
    subject = Coefficients.load(path)
    info = subject.info
    values = sum(coeff.numel() for coeff in subject.values())
    tokens = sum(token.shape[0] for token in subject.tokens.values())
    trained = {"steps": info.train_steps, "seed": info.seed}
    facts = {
        "subject": info.name,
        "trigger": info.trigger,
        "class word": info.class_word,
        "acts on": "prompts with the trigger" if info.gate == "trigger" else "every prompt",
        "base": f"{info.base_model or 'unknown'} ({info.base_architecture or 'unknown family'})",
        "instance prompt": info.instance_prompt,
        "class prompt": info.class_prompt,
        "trained": ", ".join(f"{key} {value}" for key, value in trained.items() if value is not None),
        "resolution": info.resolution,
        "layers": f"{len(subject)} ({values} coefficients)",
        "token vectors": tokens or "",
        "licence": info.license,
        "created": info.created,
        "size": f"{path.stat().st_size} bytes",
    }
    return _lines(facts)


def describe_picture(path: str | Path) -> str:
    """How a picture was drawn."""
    p = read_parameters(path)
    return _lines(
        {
            "prompt": p.prompt,
            "negative prompt": p.negative_prompt,
            "subjects": ", ".join(f"{name} at {strength:g}" for name, strength in p.subjects.items()),
            "base": p.model,
            "seed": p.seed,
            "steps": p.steps,
            "sampler": p.sampler,
            "guidance": p.guidance_scale,
            "size": f"{p.width} x {p.height}" if p.width else "",
            **p.extra,
        }
    )


def _lines(facts: Mapping[str, object]) -> str:
    shown = {key: str(value) for key, value in facts.items() if value not in (None, "")}
    width = max(map(len, shown), default=0)
    return "\n".join(f"{key:<{width}}  {value}" for key, value in shown.items())
