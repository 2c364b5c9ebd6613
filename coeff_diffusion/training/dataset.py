"""Pictures and prompts -> batches: everything is read, encoded and tokenized once, and drawn from by seed and number.

Shapes: B pictures of a batch; V views (crops, flips) of all pictures together; P prompts; T text positions, D their
width; R the resolution in pixels; C, h, w channels and size of the latents.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from ..families.family import Conditioning
from ..images.photo import MAX_FILE, DatasetError, read_photo
from ..subject.user_file import read_file
from .masks import mask_of, view_weights
from .photos import choose_views, scale, view_tensor
from .picture_folder import TrainingPicture

# --- latents ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Views:
    """What training sees of one picture.

    Attributes:
        pixels: `[views, 3, R, R]` in [-1, 1].
        weights: how much each pixel counts, `[views, 1, R, R]` in [0, 1]; None where all do.
        notes: what was done to the picture that its owner may not expect.
    """

    pixels: Tensor
    weights: Tensor | None
    notes: tuple[str, ...]


class PictureViews(Dataset[Views]):
    """Each item is all views of one picture; the seed decides them, picture by picture.

    Args:
        masks: use the masks of pictures that have one, or are transparent in parts.
    """

    def __init__(
        self,
        pictures: Sequence[TrainingPicture],
        resolution: int,
        center_crop: bool,
        random_flip: bool,
        count: int,
        seed: int,
        masks: bool = True,
    ) -> None:
        self.pictures, self.masks = list(pictures), masks
        self.resolution, self.center_crop, self.random_flip = resolution, center_crop, random_flip
        self.count, self.seed = count, seed

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> Views:
        picture, side = self.pictures[index], self.resolution
        photo = read_photo(picture.path)
        mask = mask_of(photo, picture.path, picture.mask) if self.masks else None
        image = scale(photo.image, side)
        generator = torch.Generator().manual_seed(mixed_seed(self.seed, index))
        views = choose_views(image.size, side, self.center_crop, self.random_flip, self.count, generator)
        notes, weights = list(photo.notes), None
        if mask is not None:
            scaled = scale(mask, side, Image.Resampling.BILINEAR)  # never rings: black stays black
            weighed = [(view, view_weights(scaled, side, view)) for view in views]
            weighed = [(view, weight) for view, weight in weighed if weight.any()]  # the others would teach nothing
            if not weighed:
                raise DatasetError(
                    f"{picture.path}: no part that training looks at shows what the mask keeps; crop the picture "
                    "around the subject"
                )
            views, weights = [view for view, _ in weighed], torch.stack([weight for _, weight in weighed])
            notes += ["only what is not transparent is learned"] * (picture.mask is None)
        elif photo.alpha is not None:
            notes.append("what is transparent is learned as white")
        pixels = torch.stack([view_tensor(image, side, view) for view in views])
        return Views(pixels, weights, tuple(f"{picture.path.name}: {note}" for note in notes))


@dataclass(frozen=True)
class Latents:
    """The encoded views of pictures: what the autoencoder is certain of, and how uncertain it is.

    Attributes:
        mean: `[V, C, h, w]` float32, scaled as the denoiser takes them.
        std: the same shape; None for an autoencoder without uncertainty (AutoencoderTiny).
        starts: where each picture's views begin, and the end: picture p has the views `starts[p]` to `starts[p + 1]`.
        weights: how much each place counts in the loss, `[V, 1, h, w]`, 1 on average over a picture's views, so that
            every picture counts alike; None where no picture has a mask.
    """

    mean: Tensor
    std: Tensor | None
    starts: tuple[int, ...]
    weights: Tensor | None = None

    def __len__(self) -> int:
        """The number of pictures."""
        return len(self.starts) - 1

    def first_views(self) -> Tensor:
        """One view of each picture, without noise, `[pictures, C, h, w]`."""
        return self.mean[list(self.starts[:-1])]

    def first_weights(self) -> Tensor | None:
        """The weights of `first_views`, `[pictures, 1, h, w]`."""
        return None if self.weights is None else self.weights[list(self.starts[:-1])]

    def sample(self, pictures: Sequence[int], generator: torch.Generator) -> tuple[Tensor, Tensor | None]:
        """A random view of each picture, drawn from its posterior, `[B, C, h, w]`, and its weights `[B, 1, h, w]`."""
        shares = torch.rand(len(pictures), generator=generator).tolist()
        chosen = [
            self.starts[p] + int(share * (self.starts[p + 1] - self.starts[p]))
            for p, share in zip(pictures, shares, strict=True)
        ]
        mean, weights = self.mean[chosen], None if self.weights is None else self.weights[chosen]
        if self.std is None:
            return mean, weights
        return mean + self.std[chosen] * torch.randn(mean.shape, generator=generator).to(mean.device), weights


def encode_pictures(
    vae: nn.Module,
    pictures: PictureViews,
    workers: int = 0,
    on_picture: Callable[[], object] | None = None,
    notes: list[str] | None = None,
) -> Latents:
    """Read and encode every view once.

    Args:
        vae: AutoencoderKL or AutoencoderTiny; its device and dtype are used.
        workers: processes that read pictures.
        on_picture: called after each picture, for a progress bar.
        notes: gets the pictures' notes.
    """
    weight = next(vae.parameters())
    # With a generator of its own the loader does not draw from the global one.
    loader = DataLoader(pictures, batch_size=None, num_workers=workers, generator=torch.Generator())
    means, stds, starts, weights = list[Tensor](), list[Tensor | None](), [0], list[Tensor | None]()
    for views in loader:
        for chunk in views.pixels.to(device=weight.device, dtype=weight.dtype).split(8):
            mean, std = posterior(vae, chunk)
            means.append(mean)
            stds.append(std)
        starts.append(starts[-1] + len(views.pixels))
        weights.append(views.weights)
        if notes is not None:
            notes += views.notes
        if on_picture is not None:
            on_picture()
    known = [std for std in stds if std is not None]
    mean = torch.cat(means)
    return Latents(mean, torch.cat(known) if known else None, tuple(starts), _weights(weights, starts, mean))


def _weights(weights: Sequence[Tensor | None], starts: Sequence[int], mean: Tensor) -> Tensor | None:
    """See `Latents.weights`. The weights of pixels are averaged over the places of the latents."""
    if all(one is None for one in weights):
        return None
    found = torch.ones(len(mean), 1, *mean.shape[-2:])
    for one, start, end in zip(weights, starts[:-1], starts[1:], strict=True):
        if one is not None:
            pooled = nn.functional.adaptive_avg_pool2d(one, (mean.shape[-2], mean.shape[-1]))  # [views, 1, h, w]
            found[start:end] = pooled / pooled.mean()
    return found.to(mean.device)


@torch.no_grad()
def posterior(vae: Any, pixels: Tensor) -> tuple[Tensor, Tensor | None]:
    """What an autoencoder makes of pictures `[B, 3, R, R]`: mean and deviation as in `Latents`."""
    encoded = vae.encode(pixels)
    factor = float(vae.config.scaling_factor)
    shift = float(getattr(vae.config, "shift_factor", None) or 0.0)
    if hasattr(encoded, "latent_dist"):
        posterior = encoded.latent_dist
        return (posterior.mean.float() - shift) * factor, posterior.std.float() * factor
    return (encoded.latents.float() - shift) * factor, None


# --- prompts ----------------------------------------------------------------------------------------------------------


class Prompts:
    """Prompts as the denoiser takes them. Constant ones are encoded once; those with a trained token when asked for.

    Args:
        encode: what the base makes of prompts: tensors `[P, ...]` by name (see `Family.condition`).
        texts: the prompts.
        live: which of them contain a vector that is being trained.
    """

    def __init__(
        self, encode: Callable[[Sequence[str]], Conditioning], texts: Sequence[str], live: Sequence[bool]
    ) -> None:
        self.encode, self.texts, self.live = encode, list(texts), list(live)
        with torch.no_grad():
            constant = [i for i, is_live in enumerate(live) if not is_live]
            self.cached = self._encoded(constant)

    def __len__(self) -> int:
        return len(self.texts)

    def condition(self, prompts: Sequence[int]) -> Conditioning:
        """What the denoiser is told of the given prompts, `[B, ...]` by name; one that occurs twice is encoded once."""
        rows = {**self.cached, **self._encoded(sorted({p for p in prompts if self.live[p]}))}
        return {name: torch.stack([rows[p][name] for p in prompts]) for name in rows[prompts[0]]}

    def _encoded(self, prompts: Sequence[int]) -> dict[int, Conditioning]:
        """One row of each tensor for each of these prompts."""
        if not prompts:
            return {}
        found = self.encode([self.texts[p] for p in prompts])
        return {p: {name: tensor[row] for name, tensor in found.items()} for row, p in enumerate(prompts)}


# --- batches ----------------------------------------------------------------------------------------------------------


class Batch(NamedTuple):
    """What one step trains on.

    Attributes:
        latents: `[B, C, h, w]`.
        weights: how much each of their places counts, `[B, 1, h, w]`; None where all count alike.
        prompts: the prompt of each.
        num_class: how many of them, at the end, are of the class.
    """

    latents: Tensor
    weights: Tensor | None
    prompts: list[int]
    num_class: int


@dataclass(frozen=True)
class TrainingSet:
    """All that a run trains on.

    Attributes:
        instance: the subject's pictures.
        prior: the class's pictures, for prior preservation.
        prompts: of both; the class prompt comes last.
        prompt_of: the prompt of each of the subject's pictures.
    """

    instance: Latents
    prior: Latents | None
    prompts: Prompts
    prompt_of: Sequence[int]

    def batch(self, position: int, size: int, seed: int, generator: torch.Generator) -> Batch:
        """The batch that begins at a position in the endless order of pictures.

        Args:
            position: how many pictures of the subject were drawn before.
            seed: decides the order; the same for the whole run.
            generator: decides views and posterior samples of this batch.
        """
        pictures = list(islice(picture_order(len(self.instance), mixed_seed(seed, -1), position), size))
        latents, weights = self.instance.sample(pictures, generator)
        prompts = [self.prompt_of[picture] for picture in pictures]
        if self.prior is None:
            return Batch(latents, weights, prompts, 0)
        of_class = list(islice(picture_order(len(self.prior), mixed_seed(seed, -2), position), size))
        latents = torch.cat([latents, self.prior.sample(of_class, generator)[0]])
        if weights is not None:
            weights = torch.cat([weights, torch.ones_like(weights)])
        return Batch(latents, weights, [*prompts, *[len(self.prompts) - 1] * size], size)


def mixed_seed(*parts: int) -> int:
    """One seed out of several numbers, such as (seed, step): different parts, unrelated seeds."""
    digest = hashlib.sha256(",".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1  # a generator takes 63 bits


def picture_order(total: int, seed: int, position: int) -> Iterator[int]:
    """Pictures in random order without end, each once per round, starting anywhere.

    The picture at a position depends on nothing but `(total, seed, position)`, so a resumed run sees what the
    uninterrupted one would have seen.
    """
    round_, offset = divmod(position, total)
    while True:
        order = torch.randperm(total, generator=torch.Generator().manual_seed(mixed_seed(seed, round_))).tolist()
        yield from order[offset:]
        round_, offset = round_ + 1, 0


def fingerprint_files(paths: Sequence[Path], texts: Sequence[str], masks: Sequence[Path] = ()) -> str:
    """Changes when a picture, its place, prompt or mask changes: a run is only resumed on the data it began with."""
    digest = hashlib.sha256()
    for path, text in zip(paths, texts, strict=True):
        digest.update(hashlib.sha256(read_file(path, MAX_FILE, DatasetError)).digest())
        digest.update(hashlib.sha256(text.encode()).digest())
    for mask in masks:
        digest.update(hashlib.sha256(read_file(mask, MAX_FILE, DatasetError)).digest())
    return digest.hexdigest()
