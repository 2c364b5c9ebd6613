"""Pictures and prompts -> batches: everything is read, encoded and tokenized once, and drawn from by seed and number.

Shapes: B pictures of a batch; V views (crops, flips) of all pictures together; P prompts; T text positions, D their
width; R the resolution in pixels; C, h, w channels and size of the latents.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from ..families.family import Conditioning
from ..images.photo import MAX_FILE, DatasetError, read_image
from ..subject.user_file import read_file
from .photos import choose_views, scale, view_tensor

# --- latents ----------------------------------------------------------------------------------------------------------


class PictureViews(Dataset[Tensor]):
    """Each item is all views of one picture, `[views, 3, R, R]`; the seed decides them, picture by picture."""

    def __init__(
        self, paths: Sequence[Path], resolution: int, center_crop: bool, random_flip: bool, count: int, seed: int
    ) -> None:
        self.paths = list(paths)
        self.resolution, self.center_crop, self.random_flip = resolution, center_crop, random_flip
        self.count, self.seed = count, seed

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        image = scale(read_image(self.paths[index]), self.resolution)
        generator = torch.Generator().manual_seed(mixed_seed(self.seed, index))
        views = choose_views(image.size, self.resolution, self.center_crop, self.random_flip, self.count, generator)
        return torch.stack([view_tensor(image, self.resolution, view) for view in views])


@dataclass(frozen=True)
class Latents:
    """The encoded views of pictures: what the autoencoder is certain of, and how uncertain it is.

    Attributes:
        mean: `[V, C, h, w]` float32, scaled as the denoiser takes them.
        std: the same shape; None for an autoencoder without uncertainty (AutoencoderTiny).
        starts: where each picture's views begin, and the end: picture p has the views `starts[p]` to `starts[p + 1]`.
    """

    mean: Tensor
    std: Tensor | None
    starts: tuple[int, ...]

    def __len__(self) -> int:
        """The number of pictures."""
        return len(self.starts) - 1

    def first_views(self) -> Tensor:
        """One view of each picture, without noise, `[pictures, C, h, w]`."""
        return self.mean[list(self.starts[:-1])]

    def sample(self, pictures: Sequence[int], generator: torch.Generator) -> Tensor:
        """A random view of each given picture, drawn from its posterior, `[B, C, h, w]`."""
        shares = torch.rand(len(pictures), generator=generator).tolist()
        chosen = [
            self.starts[p] + int(share * (self.starts[p + 1] - self.starts[p]))
            for p, share in zip(pictures, shares, strict=True)
        ]
        mean = self.mean[chosen]
        if self.std is None:
            return mean
        return mean + self.std[chosen] * torch.randn(mean.shape, generator=generator).to(mean.device)


def encode_pictures(
    vae: nn.Module, pictures: PictureViews, workers: int = 0, on_picture: Callable[[], object] | None = None
) -> Latents:
    """Read and encode every view once.

    Args:
        vae: AutoencoderKL or AutoencoderTiny; its device and dtype are used.
        workers: processes that read pictures.
        on_picture: called after each picture, for a progress bar.
    """
    weight = next(vae.parameters())
    # With a generator of its own the loader does not draw from the global one.
    loader = DataLoader(pictures, batch_size=None, num_workers=workers, generator=torch.Generator())
    means, stds, starts = [], [], [0]
    for views in loader:
        for chunk in views.to(device=weight.device, dtype=weight.dtype).split(8):
            mean, std = _posterior(vae, chunk)
            means.append(mean)
            stds.append(std)
        starts.append(starts[-1] + len(views))
        if on_picture is not None:
            on_picture()
    known = [std for std in stds if std is not None]
    return Latents(torch.cat(means), torch.cat(known) if known else None, tuple(starts))


@torch.no_grad()
def _posterior(vae: Any, pixels: Tensor) -> tuple[Tensor, Tensor | None]:
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

    def batch(self, position: int, size: int, seed: int, generator: torch.Generator) -> tuple[Tensor, list[int], int]:
        """The batch that begins at a position in the endless order of pictures.

        Args:
            position: how many pictures of the subject were drawn before.
            seed: decides the order; the same for the whole run.
            generator: decides views and posterior samples of this batch.

        Returns:
            Latents `[B, C, h, w]`, the prompt of each, and how many of them, at the end, are of the class.
        """
        pictures = list(islice(picture_order(len(self.instance), mixed_seed(seed, -1), position), size))
        latents = self.instance.sample(pictures, generator)
        prompts = [self.prompt_of[picture] for picture in pictures]
        if self.prior is None:
            return latents, prompts, 0
        of_class = list(islice(picture_order(len(self.prior), mixed_seed(seed, -2), position), size))
        latents = torch.cat([latents, self.prior.sample(of_class, generator)])
        return latents, [*prompts, *[len(self.prompts) - 1] * size], size


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


def fingerprint_files(paths: Sequence[Path], texts: Sequence[str]) -> str:
    """Changes when a picture, its place or its prompt changes: a run is only resumed on the data it began with."""
    digest = hashlib.sha256()
    for path, text in zip(paths, texts, strict=True):
        digest.update(hashlib.sha256(read_file(path, MAX_FILE, DatasetError)).digest())
        digest.update(hashlib.sha256(text.encode()).digest())
    return digest.hexdigest()
