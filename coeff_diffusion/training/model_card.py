"""The README.md of a subject: what a visitor on the Hub, or a friend who got the folder, has to know."""

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from huggingface_hub import ModelCardData

from ..subject.adapter_kind import AdapterKind
from ..subject.coefficients import Coefficients
from ..subject.hub_id import is_hub_id
from ..subject.info import CoefficientsInfo
from ..subject.places import text_encoder_of
from ..subject.safetensors_file import FILE_NAME

if TYPE_CHECKING:  # sharing a subject should not wait for diffusers
    from .config import TrainConfig
    from .probe import Effect

TAGS = ["text-to-image", "diffusers", "stable-diffusion", "coeff-tuning", "coeff-diffusion"]


def model_card(coefficients: Coefficients, config: "TrainConfig", effect: "Effect", samples: Sequence[str]) -> str:
    """The card of a training run: YAML front matter as the Hub reads it, then a page for people.

    Args:
        coefficients: the subject; its info says where it comes from.
        config: the resolved settings it was trained with.
        samples: previews to show, as paths relative to the card, drawn with the validation prompt.
    """
    info = coefficients.info
    prior = f", with {config.num_class_images} pictures of {_code(str(config.class_prompt))}"
    gain = f" ({effect.improvement:+.1%} better)" if effect.learned else ""
    training = f"""\
{info.train_steps} steps of {config.train_batch_size * config.gradient_accumulation_steps} pictures at \
{info.resolution} pixels{prior * config.with_prior_preservation}; learning rate {_rates(config)}; \
seed {info.seed}.

{"On pictures that it was not trained on" if config.holds_out else "On its own pictures"}, noised the same way, the \
loss went from {effect.loss_before:.4f} to {effect.loss_after:.4f}{gain}; the subject changes the predictions by \
{effect.change:.1%}.
"""
    if not effect.learned:
        training += f"\n**Not learned:** {_plain(effect.advice() or '')}.\n"
    return _card(coefficients, dict.fromkeys(samples, str(config.validation_prompt)), training)


def _rates(config: "TrainConfig") -> str:
    """The learning rates of what learned."""
    rates = {
        "coefficients": config.trains_coefficients and config.learning_rate,
        "token": config.trains_token and config.token_learning_rate,
        "what the stages read": config.trains_stage_tokens and config.stage_token_learning_rate,
        "adapter": config.adapter_kind and config.adapter_learning_rate,
    }
    return ", ".join(f"{rate:g} ({what})" for what, rate in rates.items() if rate)


def card_of_step(card: str, step: int) -> str:
    """A run's card that tells which step of the training is the subject now; whatever else someone wrote stays."""
    rest = re.sub(r"^The subject is step \d+ of this training; .*\n\n", "", card, flags=re.MULTILINE)
    told = f"The subject is step {step} of this training; the figures are of the one it saved.\n\n"
    return re.sub(r"^## Training\n\n", lambda heading: heading[0] + told, rest, count=1, flags=re.MULTILINE)


def subject_card(coefficients: Coefficients, samples: Mapping[str, str]) -> str:
    """The card of a subject of which nothing is known but what its file says.

    Args:
        samples: the prompts of pictures to show, by their paths relative to the card.
    """
    info = coefficients.info
    facts = [
        f"{info.train_steps} steps" if info.train_steps is not None else "",
        f"pictures of {info.resolution} pixels" if info.resolution is not None else "",
        f"seed {info.seed}" if info.seed is not None else "",
        f"with {_plain(info.trained_with)}" if info.trained_with else "",
    ]
    training = f"{', '.join(filter(None, facts)) or 'Nothing is known about it'}.\n"
    if info.effect is not None:
        training += f"\nOn its own pictures the subject changes the predictions by {info.effect:.1%}.\n"
    return _card(coefficients, samples, training)


def is_public(base: str) -> bool:
    """Whether others can find the base by its name: it is a Hub id, or ships with the package."""
    return base == "embedded" or is_hub_id(base)


def _card(coefficients: Coefficients, samples: Mapping[str, str], training: str) -> str:
    info = coefficients.info
    base = info.base_model if is_hub_id(info.base_model) else None  # the Hub makes a link of it
    data = ModelCardData(
        base_model=base,
        base_model_relation="adapter" if base else None,
        instance_prompt=info.instance_prompt or None,
        tags=[*TAGS, "stable-diffusion-xl"] if _is_xl(coefficients) else TAGS,
        pipeline_tag="text-to-image",
        # Not diffusers: the Hub would tell visitors to load the repository as a whole pipeline, which it is not.
        library_name="coeff-diffusion",
        widget=[{"text": prompt, "output": {"url": sample}} for sample, prompt in samples.items()] or None,
    )
    data.license, data.license_name = _license(info.license)
    return f"---\n{data.to_yaml()}\n---\n\n{_page(coefficients, samples)}\n## Training\n\n{training}"


def _license(name: str) -> tuple[str, str | None]:
    """The licence as the Hub wants it: one of its own names, in lower case, or "other" and a name."""
    if re.fullmatch(r"[A-Za-z0-9.+-]*", name):
        return name.lower() or "other", None
    return "other", re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-")


def _page(coefficients: Coefficients, samples: Mapping[str, str]) -> str:
    info = coefficients.info
    values = sum(tensor.numel() for tensor in coefficients.named_tensors().values())
    values += 0 if coefficients.adapter is None else coefficients.adapter.values
    parts = ["coefficients of the attention maps"] * bool(coefficients.of_text_encoder(""))
    parts += ["coefficients of the text encoder"] * any(map(text_encoder_of, coefficients))
    parts += ["the embedding of the trigger"] * bool(coefficients.tokens)
    parts += ["what the stages of the UNet read there"] * bool(coefficients.stage_tokens)
    parts += [f"an adapter of the attention layers, {info.adapter}, in a file of its own"] * bool(info.adapter)
    listed = " and ".join(filter(None, [", ".join(parts[:-1]), parts[-1]]))
    pictures = "".join(f"![{_plain(prompt)}]({sample})\n" for sample, prompt in samples.items())
    prompt = info.instance_prompt or info.trigger
    base = info.base_model if is_public(info.base_model) else "path/to/the/base"
    return f"""# {_plain(info.name or info.trigger or "A subject")}

{pictures}
A subject for Stable Diffusion{" XL" * _is_xl(coefficients)}, learned with
[Coeff-Tuning](https://arxiv.org/abs/2503.18337): {values:,} numbers
({listed}) that make the base draw this {_plain(info.class_word) or "subject"}.

{_trigger(info)}
{_adapter(info)}
**Base:** {_base(info)}. Other bases of the same family may work; another family is refused when loading.

## Use

```python
from coeff_diffusion import load_base, load_coefficients

pipe = load_base("{base}")  # or any StableDiffusion{"XL" * _is_xl(coefficients)}Pipeline of the same family
load_coefficients(pipe, "coefficients.safetensors")  # or the id of this repository
pipe({json.dumps(prompt, ensure_ascii=False)}).images[0].save("picture.png")
```

```
coeff-diffusion generate --base {base} --subject coefficients.safetensors \\
    --prompt {shlex.quote(" ".join(prompt.split()))}
```
"""


def _is_xl(coefficients: Coefficients) -> bool:
    """Whether the base has XL's two text encoders, as far as the subject tells."""
    return "text_encoder_2" in coefficients.tokens or "-xl-" in coefficients.info.base_architecture


def _trigger(info: CoefficientsInfo) -> str:
    acts = "It acts on every prompt."
    if info.gate == "trigger" and info.trigger:
        acts = f"Prompts without {_code(info.trigger)} give the base, unchanged."
    return f"**Trigger:** {_code(info.trigger)}. {acts}" if info.trigger else acts


def _adapter(info: CoefficientsInfo) -> str:
    if not info.adapter:
        return ""
    kind = AdapterKind.parse(info.adapter)
    alone = f"Alone, without\nthe coefficients and the learned word, others load it, too: `{kind.loaded_by}`."
    return f"""
**Adapter:** `{kind.file}` ({_code(info.adapter)}) belongs beside `{FILE_NAME}` and is loaded with it. \
{alone if kind.loaded_by else ""}
"""


def _base(info: CoefficientsInfo) -> str:
    """The base in words; a folder's name means nothing to others and is nobody's business."""
    if is_public(info.base_model):
        return _code(info.base_model) + (f" (revision {_code(info.base_revision)})" if info.base_revision else "")
    return f"one of the family {_code(info.base_architecture or 'unknown')} that is not public"


def _plain(text: str) -> str:
    """Text as text: nothing in it is Markdown or HTML."""
    return re.sub(r"([\\`*_{}\[\]<>#|!])", r"\\\1", " ".join(text.split()))


def _code(text: str) -> str:
    """Text as code within a line; a backtick would end it."""
    return f"`{' '.join(text.split()).replace('`', chr(39))}`"
