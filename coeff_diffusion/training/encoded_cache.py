"""What a base's encoders make of pictures and prompts, kept in a folder: a later run reads it instead of encoding.

The name of a file is the SHA-256 of all that decides what is in it: the weights and settings of the encoder, the kind
of device that it computes on, and its very input, which is pixels or tokens. A picture that was edited, cropped or
mirrored otherwise has other pixels, so there is no list of settings here that something could be missing from.

Shapes: B pictures of a batch; C, h, w channels and size of the latents; P prompts.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from ..families.family import Conditioning
from ..families.registry import denoiser_of, encoders_of, tokenizer_name
from ..subject.atomic_write import atomic_write
from ..subject.errors import listed
from .captions import some
from .latents import posterior
from .model import Learner
from .tensor_file import DamagedFileError, read_tensors

FORMAT = "coeff-diffusion-encoded"
TYPES = ("F32", "F16", "BF16", "I64")
NO_CONFIG = ("_", "transformers_version", "dtype", "torch_dtype")  # how entries begin that change no result


class EncodedCache:
    """Tensors by what they were made of.

    Args:
        folder: where the files lie, or will; each can be deleted at any time.

    Attributes:
        read, kept: how many were found there, and how many were added.
        refused: why files that were there were not used, one line each; they are made anew.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.read, self.kept, self.refused = folder, 0, 0, list[str]()

    def encoded(
        self, key: str, encode: Callable[[], dict[str, Tensor]], check: Callable[[Mapping[str, Tensor]], None]
    ) -> dict[str, Tensor]:
        """What is kept under a key, or else what `encode` makes, which is then kept.

        Args:
            key: 64 hex digits.
            check: raises DamagedFileError where tensors cannot be what `encode` makes.

        Returns:
            Tensors by name; on the CPU where they were read.

        Raises:
            OSError: the folder cannot be written.
        """
        path = self.folder / f"{key}.safetensors"
        if path.exists():
            try:
                found = _read(path, key)
                check(found)
                self.read += 1
                return found
            except DamagedFileError as error:
                self.refused.append(f"{path} is not used and made anew: {error}")
        made = encode()
        plain = {name: tensor.detach().cpu().contiguous() for name, tensor in made.items()}
        last = ",".join(name for name, tensor in made.items() if _has_channels_last(tensor))
        data = save(plain, metadata={"format": FORMAT, "key": key, "digest": _digest(plain), "channels_last": last})
        self.folder.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as file:
            file.write(data)
        self.kept += 1
        return made

    def said(self) -> list[str]:
        """What was read and what was kept, in lines for the user."""
        lines = some(self.refused, "files like these")
        return [*lines, f"{self.folder}: {self.read} encoded parts were read, {self.kept} were encoded and kept"]


def kept_posterior(cache: EncodedCache, vae: Any) -> Callable[[Any, Tensor], tuple[Tensor, Tensor | None]]:
    """`posterior`, asked only for pictures that the cache does not hold.

    Args:
        vae: the autoencoder that encodes; it is the one that the result has to be called with.
    """
    network = network_digest(vae)
    scale = 2 ** (len(vae.config.block_out_channels) - 1)

    def encode(vae: Any, pixels: Tensor) -> tuple[Tensor, Tensor | None]:
        batch, _, height, width = pixels.shape
        expected = (batch, vae.config.latent_channels, height // scale, width // scale)

        def made() -> dict[str, Tensor]:
            mean, std = posterior(vae, pixels)
            return {"mean": mean} if std is None else {"mean": mean, "std": std}

        def check(found: Mapping[str, Tensor]) -> None:
            if set(found) not in ({"mean"}, {"mean", "std"}):
                raise DamagedFileError(f"it holds {listed(sorted(found))}, expected mean and std")
            for name, tensor in found.items():
                if tensor.shape != expected or tensor.dtype != torch.float32:
                    raise DamagedFileError(
                        f"{name} is {list(tensor.shape)} of {tensor.dtype}, expected {list(expected)} of float32"
                    )

        found = cache.encoded(_key(network, pixels.device, {}, {"pixels": pixels}), made, check)
        std = found.get("std")
        return found["mean"].to(pixels.device), None if std is None else std.to(pixels.device)

    return encode


def kept_condition(
    cache: EncodedCache, learner: Learner, pipe: Any, size: tuple[int, int]
) -> Callable[[Sequence[str]], Conditioning]:
    """`Learner.condition` of prompts that nothing that learns is read in, asked only where the cache does not hold it.

    Args:
        pipe: the base by itself; its text encoders are what decides.
        size: of the pictures in pixels.
    """
    width = denoiser_of(pipe).config["cross_attention_dim"]
    # Beside the base: what was put into the text encoders changes what they are asked, if not what they answer.
    shape = {
        "size": size,
        "tokens": {name: len(vectors) for name, vectors in learner.tokens.items()},
        "stages": sorted(learner.stage_tokens),
        "heads": sorted(learner.text_coefficients),
    }

    def condition(texts: Sequence[str]) -> Conditioning:
        networks = "".join(network_digest(encoder) for encoder in encoders_of(pipe).values())
        tokens = {name: _tokens(getattr(learner.student, tokenizer_name(name)), texts) for name in encoders_of(pipe)}

        def check(found: Mapping[str, Tensor]) -> None:
            text = found.get("prompt_embeds")
            if text is None or text.ndim != 3 or text.shape[-1] != width:
                raise DamagedFileError(f"it holds no prompt_embeds of width {width}")
            if any(tensor.ndim == 0 or len(tensor) != len(texts) for tensor in found.values()):
                raise DamagedFileError(f"it is not of {len(texts)} prompts")

        asked = {**shape, "texts": list(texts)}
        key = _key(networks, learner.device, asked, tokens)
        found = cache.encoded(key, lambda: dict(learner.condition(texts, size)), check)
        return {name: tensor.to(learner.device) for name, tensor in found.items()}

    return condition


def network_digest(network: nn.Module) -> str:
    """Hex SHA-256 over all weights of a network and its settings."""
    config: Any = network.config
    entries = dict(config) if isinstance(config, Mapping) else config.to_dict()
    entries = {name: value for name, value in entries.items() if not name.startswith(NO_CONFIG)}
    settings = json.dumps([type(network).__name__, entries], sort_keys=True, default=str)
    return hashlib.sha256((settings + _digest(network.state_dict())).encode()).hexdigest()


def _key(network: str, device: torch.device, settings: Mapping[str, Any], inputs: Mapping[str, Tensor]) -> str:
    """The name of what a network makes of these inputs; devices of another kind round otherwise."""
    told = json.dumps([FORMAT, network, device.type, settings, _digest(inputs)], sort_keys=True)
    return hashlib.sha256(told.encode()).hexdigest()


def _digest(tensors: Mapping[str, Tensor]) -> str:
    """Hex SHA-256 over names, types, shapes and values."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _tokens(tokenizer: Any, texts: Sequence[str]) -> Tensor:
    """What a text encoder is given of prompts, `[P, T]`."""
    read = tokenizer(list(texts), padding="max_length", truncation=True, max_length=tokenizer.model_max_length)
    return torch.tensor(read.input_ids)


def _read(path: Path, key: str) -> dict[str, Tensor]:
    """The tensors of a file that `EncodedCache` wrote under this key.

    Raises:
        DamagedFileError: it is something else, or was changed.
    """
    found, metadata = read_tensors(path, FORMAT, TYPES)
    if metadata.get("key") != key:
        raise DamagedFileError("it was kept for another input")
    if metadata.get("digest") != _digest(found):
        raise DamagedFileError("its values are not those that were kept")
    if wrong := [name for name, one in found.items() if one.is_floating_point() and not bool(one.isfinite().all())]:
        raise DamagedFileError(f"{listed(wrong)} holds values that are no numbers")
    for name in metadata.get("channels_last", "").split(","):
        if name in found and found[name].ndim == 4:  # convolutions round otherwise where memory has another order
            found[name] = found[name].contiguous(memory_format=torch.channels_last)
    return found


def _has_channels_last(tensor: Tensor) -> bool:
    """Whether that, and not the usual order, is how it lies in memory."""
    return tensor.ndim == 4 and not tensor.is_contiguous() and tensor.is_contiguous(memory_format=torch.channels_last)
