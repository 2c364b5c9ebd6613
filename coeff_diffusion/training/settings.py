"""Every setting of a training run, with its default and its help; what is made of them stands in `config`.

Flags carry the names of diffusers' `train_dreambooth.py` wherever both have the setting. Every default that was chosen
by measurement stands here and nowhere else.
"""

from dataclasses import dataclass, field
from typing import Literal

from ..subject.adapter_kind import AdapterKind
from ..subject.info import Gate


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """The fields of `TrainConfig`: the text under a field is its help."""

    # --- Base
    pretrained_model_name_or_path: str = "embedded"
    """The base to teach: "embedded" (the small one shipped inside the package), a diffusers folder, a single
    .safetensors checkpoint or a Hub id."""
    revision: str | None = None
    """Branch, tag or commit of the base's Hub repository."""
    base_config: str | None = None
    """For a single checkpoint: the diffusers folder or Hub id that its component configs and tokenizer come from."""
    pretrained_vae_model_name_or_path: str | None = None
    """An autoencoder instead of the base's own: a diffusers folder, a .safetensors file or a Hub id. A checkpoint
    without one needs it; madebyollin/sdxl-vae-fp16-fix lets Stable Diffusion XL stay in float16."""
    mixed_precision: Literal["no", "fp16", "bf16"] = "no"
    """Number format of the frozen base; what is trained stays float32. fp16 needs a GPU, bf16 halves the memory."""
    quantization: Literal["no", "int8"] = "no"
    """int8 keeps the base's linear layers in eight bits: half the memory of half precision, a little slower and a
    little less exact."""

    # --- Subject
    instance_data_dir: list[str] | str | None = None
    """Pictures of the subject: a folder, or a list of files. A `.txt` or `.caption` file beside a picture, or its line
    in `metadata.jsonl` or `metadata.csv`, is its caption and wins over the instance prompt; where it lacks the trigger,
    that takes the place of the class word (or goes in front). What is not used of a folder is said."""
    caption_model: str | None = None
    """A captioning model of transformers, BLIP or Florence-2: a folder, or an id on the Hub such as
    Salesforce/blip-image-captioning-base. It writes a `.txt` file beside each picture that has no caption; what is
    written there already stays."""
    use_masks: bool = True
    """Learn only what the mask of a picture shows: white in `<picture>-masklabel.png`, or in a file called as the
    picture in the folder `masks`; without such a file, what is not transparent. Off: all of every picture counts."""
    crop_boxes: dict[str, list[float]] | None = None
    """The part of a picture that is used, and of its mask: left, top, right and bottom as shares of its width and
    height, by the name of its file: {"1.jpg": [0.2, 0, 0.9, 1]}. What is cropped or bucketed is that part."""
    class_word: str | None = None
    """What kind of thing the subject is, in a word the base knows: "dog". Default: the trigger without its first word,
    or the word after "sks" in the instance prompt."""
    trigger: str | None = None
    """The words that call the subject up. Default: "sks <class_word>"."""
    instance_prompt: str | None = None
    """What every picture of the subject shows; must contain the trigger. Default: "a <trigger>"."""
    resolution: int | None = None
    """Side of the training pictures in pixels. Default: what the base was trained at."""
    enable_bucket: bool = False
    """Leave pictures nearly the shape they have, up to 4 : 1, at as many pixels as the square of the resolution,
    instead of cropping them square. Steps whose pictures have several shapes take one pass for each."""
    center_crop: bool = False
    """Crop the middle of each picture instead of random parts of it."""
    random_flip: bool = False
    """Mirror pictures at random. Leave off where left and right differ, as in faces and writing."""
    facing: Literal["auto", "as_is", "one_way"] = "auto"
    """one_way mirrors pictures in which the subject faces the other way than in most: a few that disagree may teach
    small bases a head on both ends. Leave as_is where left and right differ, as in writing. auto: one_way on the
    embedded base (without random_flip), as_is on others."""
    cached_views: int = 8
    """Random crops of each picture that are encoded once and kept. More views, more variety, longer preparation."""
    dataloader_num_workers: int = 0
    """Processes that read pictures while they are prepared; 0 reads them in the main process."""
    cache_latents_dir: str | None = None
    """Folder in which encoded pictures, and prompts that nothing learns in, are kept for later runs, which read them
    instead of encoding. What was changed since, in a picture, a setting or the autoencoder, is encoded anew."""

    # --- Prior preservation
    with_prior_preservation: bool = False
    """Also train on pictures of the class, so that the class itself stays what it was. With `gate: trigger`, prompts
    without the trigger are the base's anyway; then this only keeps the subject close to its class."""
    class_data_dir: str | None = None
    """Folder of class pictures. What is missing is drawn by the base, once, and reused by later runs."""
    class_prompt: str | None = None
    """What the class pictures show. Default: "a <class_word>"."""
    num_class_images: int = 100
    """How many class pictures to use."""
    sample_batch_size: int = 4
    """Class pictures drawn at once."""
    prior_loss_weight: float = 1.0
    """How much the class pictures count against the subject's."""

    # --- What is learned
    train: Literal["coefficients+token", "coefficients", "token"] = "coefficients+token"
    """The coefficients of the attention maps, the embedding of the trigger, or both."""
    layers: Literal[
        "auto", "all", "self", "cross", "content", "style", "light", "text",
        "auto+text", "all+text", "self+text", "cross+text", "content+text", "style+text", "light+text",
    ] = "auto"  # fmt: skip
    """Attention layers that get coefficients: self-attention forms shapes, cross-attention reads the prompt. Stable
    Diffusion XL knows "content" (what is shown), "style" (how it looks) and "light" (the prompt's part of both, and the
    finest layers: a file of 36 KB where "all" takes 144). auto: "light" there; on the embedded base, with stage tokens,
    the stages that are worth one; else "all". "text" is the layers of the text encoder, which reads the prompt; "+text"
    adds them to any other choice."""
    blocks: list[str] = field(default_factory=list)
    """Patterns on attention paths, such as ["up_blocks.*"]; only layers that match one get coefficients, and only
    stages that hold one read a token of their own. Empty: all."""
    coeff_dropout: float = 0.2
    """Chance that an entry of a coefficient matrix is left out of a training step. The paper's best rate is 0.2."""
    num_vectors: int = 1
    """Vectors that make up the trigger's embedding. More can hold more, and take as many places in the prompt."""
    stage_tokens: bool = True
    """Beside the trigger's embedding, learn what each stage of the UNet reads at the trigger: details that the text
    encoder cannot say, such as stripes and spots."""
    with_adapter: str | None = field(default=None, metadata={"flag": "with"})
    """An adapter of the attention layers that learns beside all this: "lora:4", "dora:4", "loha:4", "lokr:4",
    "adapter:8" (a bottleneck), the number being its rank, "ia3" or "ssf". It is saved beside the subject as a file that
    diffusers (LoRA, DoRA) or PEFT (LoHa, LoKr, IA3) loads by itself, and makes what is shared larger."""
    gate: Gate = "trigger"
    """How the file acts later: only on prompts with the trigger (all others are the base's, bit for bit), or always."""

    # --- Learning
    max_train_steps: int = 300
    """Updates in all."""
    train_batch_size: int = 4
    """Pictures of the subject in a step; prior preservation adds as many of the class."""
    gradient_accumulation_steps: int = 1
    """Batches that make one update: the effect of a larger batch in the memory of a small one."""
    gradient_checkpointing: bool = False
    """Save memory by computing parts of each step twice."""
    offload: bool = False
    """Keep of the base on the GPU only what is at work: the autoencoder while pictures are encoded, the UNet in
    steps, with the text encoders if something learns in them, all of it for previews. The rest waits in main memory;
    results stay the same. For a base that this training loads itself, on a GPU."""
    learning_rate: float = 1e-3
    """Of the coefficients. Higher ones gain no more beside a token and drift further from the base."""
    token_learning_rate: float | None = None
    """Of the trigger's embedding. Default: 0.04 on the embedded base, 0.001 on others, whose words have smaller
    values."""
    stage_token_learning_rate: float | None = None
    """Of what the stages read at the trigger. Lower learns fewer details in as many steps. Default: 0.1 on the embedded
    base, 0.03 on others."""
    adapter_learning_rate: float = 1e-4
    """Of the adapter (`with`). diffusers' default for LoRAs; the small embedded base takes ten times as much."""
    lr_scheduler: Literal[
        "constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial"
    ] = "constant"
    """How the learning rates run over the steps."""
    lr_warmup_steps: int = 0
    """Steps over which the learning rates rise from zero (not with "constant")."""
    lr_num_cycles: int = 1
    """Hard restarts of "cosine_with_restarts"."""
    lr_power: float = 1.0
    """Power of "polynomial"."""
    adam_beta1: float = 0.9
    """AdamW's decay of the mean gradient."""
    adam_beta2: float = 0.999
    """AdamW's decay of the mean squared gradient."""
    adam_weight_decay: float = 1e-2
    """AdamW's pull towards zero."""
    adam_epsilon: float = 1e-8
    """AdamW's guard against division by zero."""
    max_grad_norm: float = 1.0
    """Gradients longer than this are shortened to it."""
    snr_gamma: float | None = None
    """Min-SNR weighting of the timesteps (5.0 is usual); off by default."""
    noise_offset: float = 0.0
    """Noise that is the same all over a channel, added to the rest: lets bases that learned without pure noise reach
    very dark and very bright pictures (0.05 to 0.1). 0: none."""
    use_ema: bool = True
    """Keep the average of what is learned over the last steps instead of its last state: calmer, a little behind."""
    ema_decay: float = 0.99
    """How much of the average each step keeps, at most: 0.99 is an average of about the last 100 steps."""
    seed: int = 0
    """Decides every random choice: the same seed gives the same file, byte for byte, on a CPU."""

    # --- Validation
    validate_every_n_steps: int | None = None
    """Measure the loss on fixed noise every this many steps: a curve that tells which step is the best, where the loss
    of single steps only jumps. As many noised pictures are measured as take about a tenth of the time of training (8 to
    40). 0: never. Default: 20 if anything else of this section is asked for, else 0."""
    validation_split: float = 0.0
    """Hold out pictures of the subject, to measure on what is not trained on: a share (0.2) or, from 1 on, a number of
    pictures. With 0 the training pictures themselves are measured, which few pictures are too few to go without."""
    validation_data_dir: str | None = None
    """Folder of other pictures of the subject to measure on, with captions and masks as in `instance_data_dir`."""
    keep_best: bool = False
    """The subject that is saved is that of the step with the lowest validation loss (smoothed over its
    neighbours), not of the last step. The timeline keeps all."""
    early_stopping_patience: int = 0
    """End training when the validation loss has not improved for this many measurements; 0 never does."""
    early_stopping_threshold: float = 0.0
    """What counts as an improvement: a loss that is lower by more than this."""
    measure_base: Literal["auto", "always", "never"] = "auto"
    """Draw 8 pictures with a base, once, to tell from then on whether it knows such pictures as the subject's (the
    embedded base comes with that). auto does so on a GPU, where it takes seconds; on a CPU it can take many minutes.
    What is measured is kept in ~/.config/coeff-diffusion/known_pictures."""

    # --- Previews
    validation_prompt: str | None = None
    """What the previews draw. Default: the instance prompt."""
    num_validation_images: int = 2
    """Pictures of a preview; they keep their seeds over the run."""
    validation_steps: int = 100
    """Draw a preview before the first step, every this many steps, and at the end; 0 draws none."""

    # --- Output
    output_dir: str | None = None
    """Where everything goes. Default: "outputs/<trigger with dashes>"."""
    overwrite_output_dir: bool = False
    """Replace what an earlier run left in the output folder."""
    name: str | None = None
    """The subject's name in the file and the model card. Default: the trigger."""
    license: str | None = None
    """Licence of the result, as the Hub spells it ("cc0-1.0"), for the file and the model card."""
    created: str | None = None
    """Date (2026-11-23) to write into the file. Default: SOURCE_DATE_EPOCH where it is set, else no date, so that the
    same seed gives the same bytes on any day."""
    timeline_steps: int = 10
    """Keep the subject of every this many steps in `timeline.safetensors`; 0 keeps none."""
    checkpointing_steps: int = 0
    """Write a checkpoint to resume from every this many steps; 0 writes none."""
    checkpoints_total_limit: int | None = None
    """Keep only this many of the newest checkpoints."""
    resume_from_checkpoint: str | None = None
    """Go on from a checkpoint: "latest" of the output folder, or a file."""
    report_to: Literal["none", "tensorboard"] = "none"
    """Where loss, learning rates and previews are tracked beside the console."""
    logging_dir: str = "logs"
    """Folder of the tracker, inside the output folder."""

    @property
    def adapter_kind(self) -> AdapterKind | None:
        """What `with_adapter` asks for. Raises CoefficientsError: no such adapter."""
        return None if self.with_adapter is None else AdapterKind.parse(self.with_adapter)

    @property
    def pictures_per_step(self) -> int:
        """How many pass through the base in a step, those of the class included."""
        return self.train_batch_size * self.gradient_accumulation_steps * (2 if self.with_prior_preservation else 1)

    @property
    def holds_out(self) -> bool:
        """Whether what is learned is measured on pictures that are not trained on."""
        return bool(self.validation_split or self.validation_data_dir)

    @property
    def trains_coefficients(self) -> bool:
        return self.train != "token"

    @property
    def trains_token(self) -> bool:
        return self.train != "coefficients"

    @property
    def trains_stage_tokens(self) -> bool:
        return self.trains_token and self.stage_tokens
