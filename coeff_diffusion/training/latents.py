"""Pictures -> what the base's autoencoder makes of them: everything is read and encoded once, before the first step.

Shapes: B pictures of a batch; V views (crops, flips) of all pictures of one size together; W, H that size in pixels;
C, h, w channels and size of the latents.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from ..families.family import Framing
from ..images.photo import DatasetError
from .views import PictureViews, Views

Encode = Callable[[Any, Tensor], tuple[Tensor, Tensor | None]]  # see `posterior`
MOST_PIXELS = 2**20  # that the autoencoder sees at once: it needs gigabytes for a picture of a million


@dataclass(frozen=True)
class Latents:
    """The encoded views of pictures of one size: what the autoencoder is certain of, and how uncertain it is.

    Attributes:
        mean: `[V, C, h, w]` float32, scaled as the denoiser takes them.
        std: the same shape; None for an autoencoder without uncertainty (AutoencoderTiny).
        starts: where each picture's views begin, and the end: picture p has the views `starts[p]` to `starts[p + 1]`.
        weights: how much each place counts in the loss, `[V, 1, h, w]`, 1 on average over a picture's views, so that
            every picture counts alike; None where no picture has a mask.
        framings: what of its picture each view is.
    """

    mean: Tensor
    std: Tensor | None
    starts: tuple[int, ...]
    weights: Tensor | None = None
    framings: tuple[Framing, ...] = ()

    def __len__(self) -> int:
        """The number of pictures."""
        return len(self.starts) - 1

    def first_views(self) -> Tensor:
        """One view of each picture, without noise, `[pictures, C, h, w]`."""
        return self.mean[list(self.starts[:-1])]

    def first_weights(self) -> Tensor | None:
        """The weights of `first_views`, `[pictures, 1, h, w]`."""
        return None if self.weights is None else self.weights[list(self.starts[:-1])]

    def first_framings(self) -> list[Framing]:
        """The framing of each of `first_views`."""
        return [self.framings[start] for start in self.starts[:-1]] if self.framings else []

    def sample(self, pictures: Sequence[int], shares: Sequence[float], generator: torch.Generator) -> "Part":
        """A view of each picture, drawn from its posterior.

        Args:
            shares: which of its views, from 0 to 1.
        """
        chosen = [
            self.starts[p] + int(share * (self.starts[p + 1] - self.starts[p]))
            for p, share in zip(pictures, shares, strict=True)
        ]
        mean, weights = self.mean[chosen], None if self.weights is None else self.weights[chosen]
        framings = [self.framings[view] for view in chosen] if self.framings else []
        if self.std is not None:
            mean = mean + self.std[chosen] * torch.randn(mean.shape, generator=generator).to(mean.device)
        return Part(list(range(len(pictures))), mean, weights, framings)


class Part(NamedTuple):
    """Those pictures of a batch that have one size.

    Attributes:
        rows: their places in the batch, `[b]`.
        latents: `[b, C, h, w]`.
        weights: how much each of their places counts, `[b, 1, h, w]`; None where all count alike.
        framings: what of its picture each one is; empty where that is not known.
    """

    rows: list[int]
    latents: Tensor
    weights: Tensor | None
    framings: list[Framing]

    def behind(self, count: int) -> "Part":
        """The same, further back in the batch."""
        return self._replace(rows=[row + count for row in self.rows])

    def with_those(self, other: "Part") -> "Part":
        """Both together."""
        weights = None
        if self.weights is not None or other.weights is not None:
            weights = torch.cat([part._every_weight() for part in (self, other)])
        return Part(
            self.rows + other.rows, torch.cat([self.latents, other.latents]), weights, self.framings + other.framings
        )

    def _every_weight(self) -> Tensor:
        return torch.ones_like(self.latents[:, :1]) if self.weights is None else self.weights


def joined(parts: Sequence[Part]) -> list[Part]:
    """As few parts as there are sizes, in the order in which these come first."""
    found: dict[torch.Size, Part] = {}
    for part in parts:
        size = part.latents.shape[1:]
        found[size] = found[size].with_those(part) if size in found else part
    return list(found.values())


@dataclass(frozen=True)
class Pictures:
    """The encoded views of pictures of several sizes.

    Attributes:
        groups: the pictures of each size.
        places: for each picture its group, and its number in that.
    """

    groups: tuple[Latents, ...]
    places: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, latents: Latents) -> "Pictures":
        """Pictures that all have one size."""
        return cls((latents,), tuple((0, number) for number in range(len(latents))))

    def __len__(self) -> int:
        """The number of pictures."""
        return len(self.places)

    def largest(self) -> tuple[Latents, list[int]]:
        """The group of most pictures, and which pictures these are."""
        group = max(range(len(self.groups)), key=lambda group: len(self.groups[group]))
        return self.groups[group], [number for number, place in enumerate(self.places) if place[0] == group]

    def sample(self, pictures: Sequence[int], generator: torch.Generator) -> list[Part]:
        """A random view of each picture, one part for each size."""
        shares = torch.rand(len(pictures), generator=generator).tolist()
        rows: dict[int, list[int]] = {}
        for row, picture in enumerate(pictures):
            rows.setdefault(self.places[picture][0], []).append(row)
        parts = []
        for group, places in rows.items():
            inner = [self.places[pictures[row]][1] for row in places]
            part = self.groups[group].sample(inner, [shares[row] for row in places], generator)
            parts.append(part._replace(rows=places))
        return parts


def encode_pictures(
    vae: nn.Module,
    pictures: PictureViews,
    workers: int = 0,
    on_picture: Callable[[], object] | None = None,
    notes: list[str] | None = None,
    encode: Encode | None = None,
) -> Pictures:
    """Read and encode every view once.

    Args:
        vae: AutoencoderKL or AutoencoderTiny; its device and dtype are used.
        workers: processes that read pictures.
        on_picture: called after each picture, for a progress bar.
        notes: gets the pictures' notes.
        encode: what the autoencoder makes of pixels; default: `posterior`.

    Raises:
        DatasetError: a picture cannot be used.
    """
    # With a generator of its own the loader does not draw from the global one.
    loader = DataLoader(_Read(pictures), batch_size=None, num_workers=workers, generator=torch.Generator())
    groups: dict[torch.Size, _Group] = {}
    places = []
    for views in loader:
        if isinstance(views, DatasetError):
            raise views
        size = views.pixels.shape[-2:]
        number = list(groups).index(size) if size in groups else len(groups)
        group = groups.setdefault(size, _Group())
        places.append((number, len(group.starts) - 1))
        group.add(vae, views, encode or posterior)
        if notes is not None:
            notes += views.notes
        if on_picture is not None:
            on_picture()
    return Pictures(tuple(group.latents() for group in groups.values()), tuple(places))


class _Read(Dataset[Views | DatasetError]):
    """Pictures, or what is wrong with them: an error that a worker raises has its whole stack in its message."""

    def __init__(self, pictures: PictureViews) -> None:
        self.pictures = pictures

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> Views | DatasetError:
        try:
            return self.pictures[index]
        except DatasetError as error:
            return error


class _Group:
    """Pictures of one size while they are encoded."""

    def __init__(self) -> None:
        self.means, self.stds = list[Tensor](), list[Tensor]()
        self.starts, self.weights, self.framings = [0], list[Tensor | None](), list[Framing]()

    def add(self, vae: nn.Module, views: Views, encode: Encode) -> None:
        weight = next(vae.parameters())
        at_once = min(8, max(1, MOST_PIXELS // views.pixels[0, 0].numel()))
        for chunk in views.pixels.to(device=weight.device, dtype=weight.dtype).split(at_once):
            mean, std = encode(vae, chunk)
            self.means.append(mean)
            self.stds += [] if std is None else [std]
        self.starts.append(self.starts[-1] + len(views.pixels))
        self.weights.append(views.weights)
        self.framings += views.framings

    def latents(self) -> Latents:
        mean = torch.cat(self.means)
        weights = _weights(self.weights, self.starts, mean)
        std = torch.cat(self.stds) if self.stds else None
        return Latents(mean, std, tuple(self.starts), weights, tuple(self.framings))


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
    """What an autoencoder makes of pictures `[B, 3, H, W]`: mean and deviation as in `Latents`."""
    encoded = vae.encode(pixels)
    factor = float(vae.config.scaling_factor)
    shift = float(getattr(vae.config, "shift_factor", None) or 0.0)
    if hasattr(encoded, "latent_dist"):
        found = encoded.latent_dist
        return (found.mean.float() - shift) * factor, found.std.float() * factor
    return (encoded.latents.float() - shift) * factor, None
