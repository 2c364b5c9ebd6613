"""The flags of `generate`: those here, and the settings of a drawing."""

from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal

from ..images.drawing_settings import LAYERS, SETTINGS, DrawRequest
from ..subject.field_texts import field_texts
from ..subject.layer_strengths import LayerStrengths


@cache
def drawing_flags() -> dict[str, tuple[Any, str]]:
    """The flags that set something of a `DrawRequest`: the type of each, and its help, which is the field's."""
    found = {}
    for source, settings in ((DrawRequest, SETTINGS), (LayerStrengths, LAYERS)):
        for name, one in settings.items():
            if name != "layers":
                kind = Literal[one.choices] if one.choices else one.kind
                found[one.flag] = (kind | None, field_texts(source)[name])
    return found


@dataclass
class GenerateConfig:
    """Draw pictures and save each as a PNG that remembers how it was drawn."""

    prompt: list[str] = field(default_factory=list)
    """What to draw. Repeat it to draw several prompts from the same seeds."""
    subject: list[str] = field(default_factory=list)
    """A subject to load: file, folder, card or Hub id, and after a colon its strength (dog.safetensors:0.8; 1 if left
    out). Repeat it for several."""
    from_picture: str | None = field(default=None, metadata={"flag": "--from"})
    """Draw the picture in this PNG again: all its settings, and the subjects that it carries. What a picture does not
    carry has to be given with --subject. Any other flag wins over what the picture says."""
    init_image: str | None = None
    """A picture to start from (image to image), cut to the shape of the drawing; --denoising_strength says how much of
    it changes."""
    mask: str | None = None
    """What of --init_image is drawn anew (inpainting): a picture of its size, white there, black where all stays."""
    control_image: str | None = None
    """A picture that a ControlNet holds the drawing to, taken as it is: edges, depths or a pose, made
    elsewhere."""
    controlnet: str | None = None
    """The ControlNet for --control_image: a diffusers folder, a .safetensors file or a Hub id, made for this base."""
    embed_init_image: bool = True
    """Put the picture to start from, and the control picture, into what is drawn from them, so that this can be drawn
    again from its file (and the ControlNet)."""
    embed_subjects: bool = False
    """Put the subjects into each picture that they took part in: who gets the picture can draw with them."""
    base: str | None = None
    """The base: "embedded" (that is it if left out), a diffusers folder, a .safetensors checkpoint or a Hub id."""
    revision: str | None = None
    """Branch, tag or commit of a base from the Hub."""
    base_config: str | None = None
    """For a single checkpoint: the diffusers folder or Hub id its component configs are read from."""
    pretrained_vae_model_name_or_path: str | None = None
    """An autoencoder instead of the base's own: a diffusers folder, a .safetensors file or a Hub id. A checkpoint
    without one needs it; madebyollin/sdxl-vae-fp16-fix lets Stable Diffusion XL stay in float16."""
    settings: dict[str, Any] = field(default_factory=dict, metadata={"flags": drawing_flags})
    """What is given of the drawing's settings, by their flags; see `drawing_settings.py`."""
    style: list[str] = field(default_factory=list)
    """A style of styles.csv to put around each prompt (A1111's form). Repeat it for several."""
    styles_dir: str | None = None
    """The folder with styles.csv and with wildcards/colour.txt for __colour__ in prompts; left out,
    ~/.config/coeff-diffusion."""
    aspect_ratio: str | None = None
    """The shape of the pictures, such as 16:9, at a size near what the base was trained at; instead of --width and
    --height."""
    upscaler: str | None = None
    """What --upscale enlarges by: a .safetensors file of RealESRGAN or another network that spandrel knows (pip install
    "coeff-diffusion[upscale]"); Lanczos if left out."""
    compare: bool = False
    """Draw each picture also by the base alone, from the same noise, the trigger replaced by the class word."""
    grid: bool = False
    """Save one more picture: all pictures with labels, one row per prompt, the base's beside the subject's (implies
    --compare when a subject is loaded)."""
    output_dir: str = "outputs/pictures"
    """Where the pictures go, under the next free numbers."""
    device: str = "auto"
    """cpu, cuda, cuda:1, mps; auto is the GPU where there is one."""
    dtype: str | None = None
    """Of the base's weights: float32 (that is it if left out), float16, bfloat16."""
    quantization: Literal["no", "int8"] | None = None
    """int8 keeps the base's linear layers in eight bits: half the memory of half precision, a little slower and a
    little less exact."""
