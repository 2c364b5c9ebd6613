"""What a run trains on: reads, draws, encodes and tokenizes everything once, before the first step."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from ..families.registry import tokenizer_name
from ..families.shared_weights import shared_copy
from ..images.photo import DatasetError
from ..inference.studio import Studio
from ..inference.trigger import contains_trigger, reads_trigger, token_count
from .class_images import class_images
from .config import TrainConfig
from .dataset import Latents, PictureViews, Prompts, TrainingSet, encode_pictures, fingerprint_files
from .model import Learner
from .photos import find_images, read_caption, read_prompts


@dataclass(frozen=True)
class TrainingData:
    """The training set, and a fingerprint of the files and prompts it was made from."""

    data: TrainingSet
    fingerprint: dict[str, str]


def prepare_data(
    config: TrainConfig,
    learner: Learner,
    studio: Studio,
    say: Callable[[str], None],
    should_stop: Callable[[], bool] | None = None,
    show_progress: bool = True,
) -> TrainingData:
    """Read the pictures of the subject and, for prior preservation, those of the class (missing ones are drawn first).

    Args:
        config: resolved settings, resolution included.
        studio: draws the class pictures; its autoencoder encodes.

    Raises:
        DatasetError: pictures or captions that cannot be used. DrawCancelled: `should_stop` said so.
    """
    assert config.instance_data_dir is not None
    assert config.resolution is not None
    trigger, class_word = str(config.trigger), str(config.class_word)
    paths = find_images(config.instance_data_dir)
    texts = read_prompts(paths, str(config.instance_prompt), trigger, class_word)
    for path, text in zip(paths, texts, strict=True):
        if (caption := read_caption(path)) not in (None, text):
            say(f"{path.with_suffix('.txt').name}: {caption!r} lacks the trigger and is read as {text!r}")
    instance = _encode(config, studio, paths, "pictures of the subject", show_progress)
    unique = list(dict.fromkeys(texts))
    fingerprint = {"pictures": fingerprint_files(paths, texts)}
    prior = None
    if config.with_prior_preservation:
        prompt = str(config.class_prompt)
        of_class = _class_pictures(config, studio, should_stop, show_progress)
        prior = _encode(config, studio, of_class, "pictures of the class", show_progress)
        fingerprint["class_pictures"] = fingerprint_files(of_class, [prompt] * len(of_class))
    prompts = [*unique, str(config.class_prompt)] if prior is not None else unique
    live = [config.trains_token and contains_trigger(text, trigger) for text in prompts]
    size = (config.resolution, config.resolution)
    _check_read(learner, [text for text, is_live in zip(prompts, live, strict=True) if is_live], trigger)
    encoded = Prompts(lambda texts: learner.condition(texts, size), prompts, live)
    return TrainingData(TrainingSet(instance, prior, encoded, [unique.index(text) for text in texts]), fingerprint)


def _check_read(learner: Learner, prompts: Sequence[str], trigger: str) -> None:
    """Raises DatasetError: a prompt is so long that a text encoder does not read its trigger, or a part of it."""
    for name in learner.tokens:
        tokenizer = getattr(learner.student, tokenizer_name(name))
        for prompt in prompts:
            if not reads_trigger(tokenizer, prompt, trigger):
                length = token_count(tokenizer, prompt)
                raise DatasetError(
                    f"the prompt {prompt[:60]!r}... has {length} tokens and its trigger is cut off; the text encoder "
                    f"reads {tokenizer.model_max_length}, so move the trigger to the front or shorten the prompt"
                )


def _encode(config: TrainConfig, studio: Studio, paths: list[Path], what: str, show_progress: bool) -> Latents:
    assert config.resolution is not None
    views = PictureViews(
        paths, config.resolution, config.center_crop, config.random_flip, config.cached_views, config.seed
    )
    vae = shared_copy(studio.pipe.vae, dtype=torch.float32)  # half precision overflows in some autoencoders
    with tqdm(total=len(paths), desc=what, unit="picture", disable=not show_progress, leave=False) as bar:
        return encode_pictures(vae, views, config.dataloader_num_workers, bar.update)


def _class_pictures(
    config: TrainConfig, studio: Studio, should_stop: Callable[[], bool] | None, show_progress: bool
) -> list[Path]:
    assert config.resolution is not None
    return class_images(
        studio,
        str(config.class_data_dir),
        str(config.class_prompt),
        config.num_class_images,
        resolution=config.resolution,
        batch_size=config.sample_batch_size,
        seed=config.seed,
        show_progress=show_progress,
        should_stop=should_stop,
    )
