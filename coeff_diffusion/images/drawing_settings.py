"""The settings of a drawing: the one place that says what each is, where it may be, and how people set it.

A flag of `generate`, the text in a picture, what is read back from it, the range, a control of the page and a setting
of its `/draw` all follow from the fields here (see `Setting`).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from ..subject.info import Gate
from ..subject.layer_strengths import LayerStrengths
from ..subject.setting import Setting, setting, settings_of
from .control_picture import ControlPicture
from .refiner_name import RefinerName
from .start_picture import StartPicture

MAX_SEED = 2**32 - 1


@dataclass(frozen=True)
class DrawRequest:
    """What to draw. Every field but the prompt may be left out."""

    prompt: str
    """What the picture shows; a subject is called up by its trigger."""
    negative_prompt: str = setting("", label="Negative prompt", hint="What the picture should not show", id="negative")
    """What the pictures should not show."""
    prompt_2: str = setting(
        "", text="Prompt 2", label="Second prompt", hint="What the second text encoder reads instead", fine=True
    )
    """What the second text encoder of Stable Diffusion XL reads instead of the prompt; left out, the prompt."""
    template: str = ""
    """What was written where styles and wildcards made the prompt of it."""
    negative_template: str = ""
    """The same of the negative prompt."""
    styles: str = ""
    """The names of the styles."""
    subjects: Mapping[str, float] = field(default_factory=dict)
    """Strength of each loaded subject that takes part, learned trigger included: 1 as trained, 0 the base, which reads
    the class word in the trigger's place."""
    start: StartPicture | None = None
    """The picture to start from instead of pure noise, and what of it is drawn anew; its middle is cut to the size."""
    denoising_strength: float | None = setting(
        None, text="Denoising strength", low=0, high=1, reach=(0.05, 1), label="How much changes",
        hint="0.1 hardly anything, 1 all of it", of="start", called="denoising strength", usual=0.75,
    )  # fmt: skip
    """How much of the start picture changes: its part of the denoising steps, 0 to 1; left out, 0.75."""
    mask_blur: int | None = setting(
        None, text="Mask blur", low=0, high=64, reach=(0, 64), label="Soft edge", hint="Pixels between old and new",
        of="start", called="mask blur", usual=4,
    )  # fmt: skip
    """Pixels over which what is drawn anew passes into what stays; left out, 4."""
    control: ControlPicture | None = None
    """The picture that the drawing is held to, and the ControlNet that does so; its middle is cut to the size."""
    controlnet_conditioning_scale: float | None = setting(
        None, text="ControlNet scale", low=0, high=2, of="control", label="How strictly",
        hint="0 not at all, 1 as it was trained", called="strength of the ControlNet", usual=1.0,
    )  # fmt: skip
    """How strictly the ControlNet holds the drawing to the control picture; left out, 1."""
    control_guidance_start: float | None = setting(
        None, text="ControlNet from", low=0, high=1, of="control", percent=True, label="Held from %",
        hint="0: from pure noise on", called="beginning of the ControlNet", usual=0.0,
    )  # fmt: skip
    """The part of denoising from which on the ControlNet acts, 0 to 1; left out, 0."""
    control_guidance_end: float | None = setting(
        None, text="ControlNet until", low=0, high=1, of="control", percent=True, label="Held to %",
        hint="100: until it is done", called="end of the ControlNet", usual=1.0,
    )  # fmt: skip
    """The part of denoising until which the ControlNet acts, 0 to 1; left out, 1."""
    refiner: RefinerName | None = None
    """What takes the last noise out of a drawing by Stable Diffusion XL, instead of the base."""
    refiner_switch_at: float | None = setting(
        None, text="Refiner switch at", low=0, high=1, reach=(0.05, 0.95), of="refiner", percent=True, usual=0.8,
        label="Finished from %", hint="What is before is drawn by the base", called="beginning of the refiner",
    )  # fmt: skip
    """The part of denoising from which on the refiner draws, between 0 and 1; left out, 0.8."""
    seed: int | None = setting(
        None, text="Seed", low=0, high=MAX_SEED, label="Seed", hint="The same seed draws the same picture"
    )
    """Seed of the first picture, the next ones count up; left out, it is drawn at random."""
    width: int | None = setting(None, label="Width", hint="Pixels; {} is the base's own")
    """Pixels; left out, the size the base was trained at."""
    height: int | None = setting(None, label="Height", hint="Pixels; {} is the base's own")
    """Pixels; left out, the size the base was trained at."""
    batch_size: int = setting(
        1, text="Batch size", low=1, label="Pictures", hint="Drawn at once; seeds count up", reach=(1, 4), id="pictures"
    )
    """Pictures per prompt, drawn at once; left out, 1."""
    steps: int | None = setting(
        None, flag="num_inference_steps", text="Steps", always=True, low=1, reach=(1, 100), label="Steps",
        hint="More take longer and look cleaner", called="number of steps",
    )  # fmt: skip
    """Denoising steps; left out, what the base is usually drawn with: 12 (embedded), 4 (LCM, TCD, Turbo), else 20."""
    guidance_scale: float | None = setting(
        None, text="CFG scale", always=True, low=0, high=100, reach=(1, 20), step=0.1, label="Guidance",
        hint="How closely to follow the prompt", id="guidance",
    )  # fmt: skip
    """How strongly the picture follows the prompt; 1 turns guidance off; left out, what the base is usually drawn with:
    4 (embedded), 1 (LCM, TCD, Turbo), else 7.5."""
    guidance_rescale: float | None = setting(None, text="Guidance rescale", low=0, high=1)
    """Correction of overexposure by guidance, 0 to 1; left out, 0.7 for a base with zero terminal SNR, else 0."""
    scheduler: str | None = setting(
        None, text="Sampler", label="Sampler", hint="{} is usual with this base", id="sampler"
    )
    """Sampler: DDIM, "Euler a", "DPM++ 2M", UniPC, ... or a diffusers class name; left out, "DPM++ 2M" (embedded), else
    the base's own."""
    gate: Gate | None = setting(None, text="Gate")  # noqa: RUF009 - the default is None
    """Let subjects act on prompts with their trigger only, or on all; left out, as each subject was saved."""
    layers: LayerStrengths = field(
        default_factory=LayerStrengths, metadata={"setting": Setting(text="Layer strengths")}
    )
    """Factors on the strength of every subject, by kind of attention layer."""
    adapter_strength: float = setting(
        1.0, text="Adapter strength", low=0, high=2, label="Strength of the adapter",
        hint="Times the subject's own; 0 is without it", called="strength of the adapter",
    )  # fmt: skip
    """Factor on the strength of every subject, for the adapter that it learned with, 0 to 2; left out, 1. At 0 subjects
    act without their adapters."""
    begin: float = setting(
        0.0, flag="act_from", text="Act from", low=0, high=1, percent=True, label="Acts from %",
        hint="0: from pure noise on", fine=True, called="beginning",
    )  # fmt: skip
    """The part of denoising from which on subjects act, 0 to 1; left out, 0. Learned trigger words and the
    heads of text encoders act all the time."""
    end: float = setting(
        1.0, flag="act_until", text="Act until", low=0, high=1, percent=True, label="Acts to %",
        hint="100: until it is done", fine=True, called="end",
    )  # fmt: skip
    """The part of denoising until which subjects act, 0 to 1; left out, 1."""

    hires_scale: float = setting(
        1.0, text="Hires upscale", low=1, high=4, label="Second pass",
        hint="Drawn again, times larger; 1 is none", called="enlargement of the second pass",
    )  # fmt: skip
    """How many times larger the picture is drawn a second time, from itself, 1 to 4; left out, 1: it is drawn once."""
    hires_steps: int = setting(
        0, text="Hires steps", low=0, reach=(0, 100), label="Steps, second pass",
        hint="0: as many as in the first", of="hires_scale", called="number of steps of the second pass",
    )  # fmt: skip
    """Denoising steps that the second pass takes; left out, 0: as many as the first one."""
    hires_denoising_strength: float | None = setting(
        None, text="Hires denoising strength", low=0, high=1, reach=(0.05, 1), label="Change, second pass",
        hint="0.1 hardly anything, 1 all of it", of="hires_scale", called="denoising strength of the second pass",
        usual=0.3,
    )  # fmt: skip
    """How much of the enlarged picture the second pass changes, 0 to 1; left out, 0.3."""
    upscale: int = setting(
        1, text="Postprocess upscale by", low=1, high=4, reach=(1, 4), label="Enlarge",
        hint="Times, once it is drawn", called="enlargement",
    )  # fmt: skip
    """How many times larger the picture is made once it is drawn, 1 to 4; left out, 1."""

    def texts(self, encoders: Iterable[str]) -> dict[str, str]:
        """What each text encoder reads of it, by the encoder's name."""
        return {name: (self.prompt_2 if name.endswith("_2") else "") or self.prompt for name in encoders}

    @property
    def pictures(self) -> list[StartPicture]:
        """What it starts from, and what it is held to."""
        return [one for one in (self.start, self.control) if one is not None]

    def has(self, part: str) -> bool:
        """Whether there is what settings are `of` (see `Setting.of`): a picture, a refiner, a second pass."""
        return self.hires_scale > 1 if part == "hires_scale" else getattr(self, part) is not None

    def without(self, part: str) -> "DrawRequest":
        """The same without the picture to start from ("start"), the control picture ("control"), the refiner
        ("refiner") or the second pass ("hires_scale"), and without what is said of that."""
        own = {one.name: one.default for one in SETTINGS.values() if one.of == part}
        return replace(self, **{part: SETTINGS[part].default if part in SETTINGS else None, **own})

    def acts_in(self, step: int) -> bool:
        """Whether subjects act in this denoising step, counted from 0. The number of steps has to be known."""
        assert self.steps is not None
        return self.begin <= step / self.steps < self.end


SETTINGS = settings_of(DrawRequest)
LAYERS = settings_of(LayerStrengths)
"""By name. All but `layers`, which is made of them, can be set one by one."""
