"""What a run trains on: reads, draws, encodes and tokenizes everything once, before the first step."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from ..families.registry import encoders_of, family_of, tokenizer_name
from ..families.shared_weights import shared_copy
from ..images.photo import DatasetError
from ..images.shapes import bucket_sizes
from ..inference.cut_off import cut_off
from ..inference.studio import Studio
from ..inference.trigger import contains_trigger, reads_trigger
from ..subject.user_file import user_path
from .auto_captions import write_captions
from .captions import some, with_trigger
from .class_images import class_images
from .config import TrainConfig
from .crop_boxes import with_boxes
from .dataset import Prompts, TrainingSet, fingerprint_files
from .encoded_cache import EncodedCache, kept_condition, kept_posterior
from .facing import facing_one_way
from .held_out import split_pictures
from .latents import Pictures, encode_pictures
from .model import Learner
from .picture_folder import PictureFolder, TrainingPicture, find_pictures
from .views import PictureViews

MIRRORED = "\n(mirrored)"  # in a fingerprint, behind the prompt of a picture; a prompt is one line


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
    while_encoding: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> TrainingData:
    """Read the pictures of the subject and, for prior preservation, those of the class (missing ones are drawn first).

    Args:
        config: resolved settings, resolution included.
        studio: draws the class pictures; its autoencoder encodes.
        while_encoding: entered while pictures are encoded, when nothing but the autoencoder is needed.

    Raises:
        DatasetError: pictures or captions that cannot be used. DrawCancelled: `should_stop` said so.
        OSError: the folder for encoded pictures cannot be written.
    """
    assert config.resolution is not None
    found = _found(config, studio, say, should_stop)
    for line in _inventory(found, config.use_masks):
        say(line)
    pictures, held_out = split_pictures(config, found, say)
    prompts = read_prompts([*pictures, *held_out], config, say)
    class_prompt = Prompt(str(config.class_prompt), "--class_prompt")
    asked = [*prompts, class_prompt] if config.with_prior_preservation else prompts
    _check_read(learner, asked, str(config.trigger), say)
    cache = None if config.cache_latents_dir is None else EncodedCache(user_path(config.cache_latents_dir))
    encoder = Encoder(studio.pipe, learner.device, cache, while_encoding, show_progress)
    encode = partial(encoder.pictures, say=say)
    still = partial(encode, _middles(config))  # nothing random, and all of one size
    pictures, held_out = facing_one_way(config, studio.pipe, pictures, held_out, still, say)
    instance = encode(config, pictures=pictures, what="pictures of the subject")
    fingerprint = {"pictures": _fingerprint(pictures, prompts[: len(pictures)], config)}
    measured = None
    if held_out:
        measured = still(pictures=held_out, what="pictures to measure on")
        fingerprint["validation_pictures"] = _fingerprint(held_out, prompts[len(pictures) :], config)
    prior = None
    if config.with_prior_preservation:
        paths = _class_pictures(config, studio, should_stop, show_progress, say)
        of_class = [TrainingPicture(path) for path in paths]
        prior = encode(config, pictures=of_class, what="pictures of the class")
        fingerprint["class_pictures"] = fingerprint_files(paths, [class_prompt.text] * len(paths))
    unique = list(dict.fromkeys(prompt.text for prompt in prompts))
    prompt_of = [unique.index(prompt.text) for prompt in prompts]
    texts = unique if prior is None else [*unique, class_prompt.text]
    reads = bool(learner.tokens or learner.text_coefficients)  # something that learns reads the subject's prompts
    live = [reads and contains_trigger(text, str(config.trigger)) for text in texts]
    size = (config.resolution, config.resolution)
    once = None if cache is None else kept_condition(cache, learner, studio.pipe, size)
    encoded = Prompts(lambda texts: learner.condition(texts, size), texts, live, once)
    for line in cache.said() if cache else ():
        say(line)
    each = (prompt_of[: len(pictures)], measured, prompt_of[len(pictures) :])
    return TrainingData(TrainingSet(instance, prior, encoded, *each), fingerprint)


def _found(
    config: TrainConfig, studio: Studio, say: Callable[[str], None], should_stop: Callable[[], bool] | None
) -> PictureFolder:
    """The pictures of the subject, each with its words, which a model may write first."""
    assert config.instance_data_dir is not None
    boxes = config.crop_boxes or {}
    found = with_boxes(find_pictures(config.instance_data_dir), boxes)
    if config.caption_model is None or not write_captions(
        found.pictures, config.caption_model, studio.pipe.device, say, should_stop
    ):
        return found
    return with_boxes(find_pictures(config.instance_data_dir), boxes)


def _middles(config: TrainConfig) -> TrainConfig:
    """Settings by which the middle of each picture is seen, square, as it is."""
    return replace(config, center_crop=True, random_flip=False, enable_bucket=False)


def _fingerprint(pictures: Sequence[TrainingPicture], prompts: Sequence["Prompt"], config: TrainConfig) -> str:
    masks = [picture.mask for picture in pictures] if config.use_masks else []
    words = [f"{prompt.text}{MIRRORED if one.mirrored else ''}" for one, prompt in zip(pictures, prompts, strict=True)]
    return fingerprint_files([picture.path for picture in pictures], words, masks)


def _inventory(found: PictureFolder, use_masks: bool) -> list[str]:
    """How many captions and masks there are for how many pictures, and what is left out; nothing of plain pictures."""
    counts = {
        "pictures": len(found.pictures),
        "captions": sum(picture.caption is not None for picture in found.pictures),
        "masks": sum(picture.mask is not None for picture in found.pictures),
    }
    if counts["captions"] == counts["masks"] == 0 and not found.left_out:
        return []
    told = [f"{count} {what if count != 1 else what[:-1]}" for what, count in counts.items() if count]
    unused = ", which are not used (--use_masks is off)" if counts["masks"] and not use_masks else ""
    return [f"found {', '.join(told)}{unused}", *found.said()]


@dataclass(frozen=True)
class Prompt:
    """A prompt to train with, and where it comes from: a caption's source, or a flag."""

    text: str
    source: str


def read_prompts(pictures: Sequence[TrainingPicture], config: TrainConfig, say: Callable[[str], None]) -> list[Prompt]:
    """The prompt of each picture: its caption, else the instance prompt. What was done to captions is said.

    Raises:
        DatasetError: a caption is empty, or no text.
    """
    prompts, notes, changed = list[Prompt](), list[str](), list[str]()
    for picture in pictures:
        caption = picture.words()
        if caption is None:
            prompts.append(Prompt(str(config.instance_prompt), "--instance_prompt"))
            continue
        text = with_trigger(caption.text, str(config.trigger), str(config.class_word))
        prompts.append(Prompt(text, caption.source))
        notes += caption.notes
        if text != caption.text:
            changed.append(f"{caption.source}: {_short(caption.text)} lacks the trigger and is read as {_short(text)}")
    for line in (*some(notes, "captions like these"), *some(changed, "captions like these")):
        say(line)
    return prompts


def _short(words: str) -> str:
    """Words as messages quote them."""
    return repr(words if len(words) <= 100 else f"{words[:100]}...")


def _check_read(learner: Learner, prompts: Sequence[Prompt], trigger: str, say: Callable[[str], None]) -> None:
    """Say which prompts a text encoder does not read to the end.

    Raises:
        DatasetError: a prompt is so long that a text encoder does not read its trigger, or a part of it.
    """
    lines: dict[str, str] = {}
    for name in encoders_of(learner.student):
        tokenizer = getattr(learner.student, tokenizer_name(name))
        for prompt in dict.fromkeys(prompts):
            unread = cut_off(tokenizer, prompt.text)
            if unread is None:
                continue
            if contains_trigger(prompt.text, trigger) and not reads_trigger(tokenizer, prompt.text, trigger):
                raise DatasetError(
                    f"{prompt.source}: the prompt {prompt.text[:60]!r}... has {unread.total} tokens and its trigger is "
                    f"cut off; the text encoder reads {tokenizer.model_max_length}, so move the trigger to the front "
                    "or shorten the prompt"
                )
            lines[prompt.source] = unread.said(prompt.source)
    for line in some(list(lines.values()), "prompts that are cut off"):
        say(line)


@dataclass(frozen=True)
class Encoder:
    """Makes latents of pictures.

    Attributes:
        pipe: its autoencoder encodes, in float32: half precision overflows in some of them.
        device: where.
        cache: holds what was encoded before, and will hold what is now; None keeps nothing.
        meanwhile: see `prepare_data`.
    """

    pipe: Any
    device: torch.device
    cache: EncodedCache | None
    meanwhile: Callable[[], AbstractContextManager[None]]
    show_progress: bool

    def pictures(
        self, config: TrainConfig, pictures: Sequence[TrainingPicture], what: str, say: Callable[[str], None]
    ) -> Pictures:
        """The views of pictures that these settings ask for, encoded."""
        assert config.resolution is not None
        views = PictureViews(
            pictures,
            config.resolution,
            config.center_crop,
            config.random_flip,
            config.cached_views,
            config.seed,
            masks=config.use_masks,
            sizes=bucket_sizes(config.resolution, family_of(self.pipe).training_multiple(self.pipe))
            if config.enable_bucket
            else (),
        )
        notes: list[str] = []
        bar = tqdm(total=len(pictures), desc=what, unit="picture", disable=not self.show_progress, leave=False)
        with self.meanwhile(), bar:
            vae = shared_copy(self.pipe.vae, self.device, torch.float32)
            encode = None if self.cache is None else kept_posterior(self.cache, vae)
            latents = encode_pictures(vae, views, config.dataloader_num_workers, bar.update, notes, encode)
        for line in some(notes, "pictures like these"):
            say(line)
        return latents


def _class_pictures(
    config: TrainConfig,
    studio: Studio,
    should_stop: Callable[[], bool] | None,
    show_progress: bool,
    say: Callable[[str], None],
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
        say=say,
    )
