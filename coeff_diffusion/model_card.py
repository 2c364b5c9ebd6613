"""The README.md of a training run: what a visitor on the Hub, or a friend who got the folder, has to know."""

import re
from collections.abc import Sequence

from huggingface_hub import ModelCardData

from .coefficients import Coefficients, CoefficientsInfo
from .config import TrainConfig
from .losses import Effect

TAGS = ["text-to-image", "diffusers", "stable-diffusion", "coeff-tuning", "coeff-diffusion"]


def model_card(coefficients: Coefficients, config: TrainConfig, effect: Effect, samples: Sequence[str]) -> str:
    """The card: YAML front matter as the Hub reads it, then a page for people.

    Args:
        coefficients: the subject; its info says where it comes from.
        config: the resolved settings it was trained with.
        samples: previews to show, as paths relative to the card, drawn with the validation prompt.
    """
    info, prompt = coefficients.info, str(config.validation_prompt)
    values = sum(tensor.numel() for tensor in coefficients.named_tensors().values())
    data = ModelCardData(
        base_model=info.base_model if _is_public(info.base_model) else None,
        instance_prompt=info.instance_prompt,
        tags=TAGS,
        license=info.license or "other",
        pipeline_tag="text-to-image",
        library_name="diffusers",
        widget=[{"text": prompt, "output": {"url": sample}} for sample in samples] or None,
    )
    return f"---\n{data.to_yaml()}\n---\n\n{_body(info, config, values, effect, samples)}"


def _body(info: CoefficientsInfo, config: TrainConfig, values: int, effect: Effect, samples: Sequence[str]) -> str:
    name = _plain(info.name or str(info.trigger))
    pictures = "".join(f"![{_plain(str(config.validation_prompt))}]({sample})\n" for sample in samples)
    acts = (
        f"Prompts without `{info.trigger}` give the base, unchanged."
        if info.gate == "trigger"
        else "It acts on every prompt."
    )
    learned = {
        "coefficients+token": "coefficients of the attention maps and the embedding of the trigger",
        "coefficients": "coefficients of the attention maps",
        "token": "the embedding of the trigger",
    }[config.train]
    prior = f", with {config.num_class_images} pictures of `{config.class_prompt}`" * config.with_prior_preservation
    return f"""# {name}

{pictures}
A subject for Stable Diffusion, learned with [Coeff-Tuning](https://arxiv.org/abs/2503.18337): {values:,} numbers
({learned}) that make the base draw this {info.class_word}.

**Trigger:** `{info.trigger}`. {acts}

**Base:** `{info.base_model}`{f" (revision `{info.base_revision}`)" if info.base_revision else ""}. Other bases of the \
same family may work; another family is refused when loading.

## Use

```python
from coeff_diffusion import load_base, load_coefficients

pipe = load_base("{info.base_model}")  # or any StableDiffusionPipeline of the same family
load_coefficients(pipe, "coefficients.safetensors")
pipe("{_quoted(info.instance_prompt)}").images[0].save("picture.png")
```

```
coeff-diffusion generate --base {info.base_model} --subject coefficients.safetensors \\
    --prompt "{_quoted(info.instance_prompt)}"
```

## Training

{info.train_steps} steps of {config.train_batch_size * config.gradient_accumulation_steps} pictures at \
{info.resolution} pixels{prior}; learning rate {config.learning_rate:g} (coefficients), \
{config.token_learning_rate:g} (token); seed {info.seed}. `config.yaml` has every setting.

On its own pictures, noised the same way, the loss went from {effect.loss_before:.4f} to {effect.loss_after:.4f} \
({effect.improvement:+.1%} better); the subject changes the predictions by {effect.change:.1%}.
"""


def _is_public(base: str | None) -> bool:
    """Whether others can find the base by its name: it is a Hub id or ships with the package, not someone's folder."""
    return base == "embedded" or (base is not None and re.fullmatch(r"[\w.-]+/[\w.-]+", base) is not None)


def _plain(text: str) -> str:
    """Text as text: nothing in it is Markdown or HTML."""
    return re.sub(r"([\\`*_{}\[\]<>#|!])", r"\\\1", " ".join(text.split()))


def _quoted(text: str | None) -> str:
    return str(text).replace("\\", "\\\\").replace('"', '\\"')
