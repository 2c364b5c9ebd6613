"""Features of pictures by DINOv2 and CLIP, and what the protocol makes of them.

Legend: N pictures, F features.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from fidelity_settings import BenchmarkError
from PIL import Image
from torch import Tensor
from torch.nn import functional as F


class Features:
    """DINOv2 and CLIP of transformers. They wait on the CPU, so that no training is charged for their memory.

    Args:
        dino, clip: folders or ids on the Hub.
        device: where they compute.

    Raises:
        BenchmarkError: one of them cannot be loaded, or is of another kind.
    """

    def __init__(self, dino: str, clip: str, device: torch.device) -> None:
        self.device = device
        self.dino, self.dino_processor = _loaded(dino, "--dino_model", "Dinov2Model")
        self.clip, self.clip_processor = _loaded(clip, "--clip_model", "CLIPModel")

    @contextmanager
    def ready(self) -> Iterator[None]:
        """Within, they can be asked."""
        try:
            for model in (self.dino, self.clip):
                model.to(self.device)
            yield
        finally:
            for model in (self.dino, self.clip):
                model.to("cpu")

    @torch.inference_mode()
    def dino_of(self, pictures: Sequence[Image.Image]) -> Tensor:
        """The class token of the last layer, `[N, F]`, each of length 1."""
        inputs = self.dino_processor(images=list(pictures), return_tensors="pt").to(self.device)
        return F.normalize(self.dino(**inputs).last_hidden_state[:, 0], dim=-1)

    @torch.inference_mode()
    def clip_of(self, pictures: Sequence[Image.Image], texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Of the pictures, and of a text for each, `[N, F]`, each of length 1."""
        inputs = self.clip_processor(
            images=list(pictures), text=list(texts), return_tensors="pt", padding=True, truncation=True
        ).to(self.device)
        found = self.clip(**inputs)
        return found.image_embeds, found.text_embeds

    def likeness(
        self, drawn: Sequence[Image.Image], references: Sequence[Image.Image], prompts: Sequence[str]
    ) -> dict[str, float]:
        """How alike drawn pictures are to those of the same caption, and how well they follow it: mean cosines."""
        with self.ready():
            dino = (self.dino_of(drawn) * self.dino_of(references)).sum(-1)
            mine, texts = self.clip_of(drawn, prompts)
            others, _ = self.clip_of(references, prompts)
        return {
            "dino_similarity": float(dino.mean()),
            "clip_similarity": float((mine * others).sum(-1).mean()),
            "clip_text_similarity": float((mine * texts).sum(-1).mean()),
        }

    def drift(self, drawn: Sequence[Image.Image], by_base: Sequence[Image.Image]) -> float:
        """How far pictures of the same prompts and noise are from the base's: 0 for the same, 1 for opposite."""
        with self.ready():
            return (1 - float((self.dino_of(drawn) * self.dino_of(by_base)).sum(-1).mean())) / 2


def _loaded(source: str, flag: str, kind: str) -> tuple[Any, Any]:
    import transformers

    reader = transformers.AutoImageProcessor if flag == "--dino_model" else transformers.AutoProcessor
    try:
        model, processor = transformers.AutoModel.from_pretrained(source), reader.from_pretrained(source)
    except Exception as error:  # of many kinds: no such folder, no network, damaged weights, a missing processor
        said = " ".join(str(error).split())[:200]
        raise BenchmarkError(f"{flag} {source} cannot be loaded: {said}") from error
    if type(model).__name__ != kind:
        raise BenchmarkError(f"{flag} {source} is a {type(model).__name__}, expected a {kind}")
    return model.eval().requires_grad_(False), processor
