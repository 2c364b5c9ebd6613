"""Something added to the text that the stages of a denoiser read, each stage its own.

Cross-attention layers all read what the text encoder makes of the prompt. A vector added to it in one stage alone, at
the places of one word, tells that stage more about the word than the text encoder can: the stages draw different things
(layout, shape, texture). So textual inversion with a token for each layer works (P+, arXiv 2303.09522); here it is
added to the text encoder's output, where a gradient reaches it directly (NeTI's textual bypass, arXiv 2305.15391).

Legend: B rows of the batch, T text positions, D their width.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from .errors import AttachmentError
from .own_forward import give_own_forward, take_own_forward
from .sites import unwrapped

ATTRIBUTE = "_coeff_text_offsets"
TEXT = "encoder_hidden_states"


class TextOffset:
    """A pre-forward hook of one stage.

    Attributes:
        offset: `[B, T, D]` or `[T, D]`, what is added; None leaves the stage alone.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.offset: Tensor | None = None

    def __call__(self, stage: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self.offset is None:
            return None
        given = kwargs.get(TEXT)
        text = given[0] if isinstance(given, tuple) else given  # an IP-Adapter puts pictures beside it
        if not isinstance(text, Tensor):
            raise AttachmentError(f"{self.path} is not given {TEXT} by name, so nothing can be added to it")
        added = self._fitted(self.offset, text)
        return args, {**kwargs, TEXT: (added, *given[1:]) if isinstance(given, tuple) else added}

    def __getstate__(self) -> dict[str, Any]:
        """For copies and pickles, which cannot hold a tensor that is being differentiated: its values."""
        offset = self.offset
        return {**vars(self), "offset": offset if offset is None or offset.is_leaf else offset.detach()}

    def _fitted(self, offset: Tensor, text: Tensor) -> Tensor:
        """The text with the offset; rows that hold several of a sample's, as frames of a video, get the sample's."""
        times, rest = divmod(len(text), len(offset)) if offset.ndim == 3 else (1, 0)
        if rest or offset.shape[-2:] != text.shape[-2:]:
            raise AttachmentError(
                f"{self.path} reads text of {list(text.shape)}, but what is to be added is {list(offset.shape)}"
            )
        offset = offset.to(text.device, text.dtype)
        return text + (offset.repeat_interleave(times, 0) if times > 1 else offset)


class Offsets:
    """The hooks of one network; lives on it as an attribute until `detach_offsets`."""

    def __init__(self, module: Any, stages: Iterable[str]) -> None:
        self.hooks = {stage: TextOffset(stage) for stage in stages}
        self.handles: list[RemovableHandle] = [
            module.get_submodule(stage).register_forward_pre_hook(hook, with_kwargs=True)
            for stage, hook in self.hooks.items()
        ]


def attach_offsets(module: Any, stages: Iterable[str]) -> None:
    """Let stages of a network read more than the text. Changes no output yet.

    Raises:
        AttachmentError: attached already; nothing has changed then.
    """
    module = unwrapped(module)
    if hasattr(module, ATTRIBUTE):
        raise AttachmentError(f"this {type(module).__name__} has text offsets already; detach them first")
    stages = list(stages)
    setattr(module, ATTRIBUTE, Offsets(module, stages))
    for stage in stages:
        give_own_forward(module.get_submodule(stage))


def detach_offsets(module: Any) -> None:
    """Give the network back as it was. Does nothing where nothing is attached."""
    module = unwrapped(module)
    if (offsets := getattr(module, ATTRIBUTE, None)) is not None:
        for handle in offsets.handles:
            handle.remove()
        for stage in offsets.hooks:
            take_own_forward(module.get_submodule(stage))
        delattr(module, ATTRIBUTE)


def set_offsets(module: Any, offsets: Mapping[str, Tensor]) -> None:
    """Choose what is added from now on, by stage: `[B, T, D]`, or `[T, D]` for all rows; nothing in all other stages.

    Raises:
        AttachmentError: nothing is attached to one of these stages.
    """
    attached: Offsets | None = getattr(unwrapped(module), ATTRIBUTE, None)
    hooks = attached.hooks if attached else {}
    if unknown := sorted(offsets.keys() - hooks.keys()):
        raise AttachmentError(f"nothing is attached to {', '.join(unknown)}; attached are {', '.join(hooks) or 'none'}")
    for stage, hook in hooks.items():
        offset = offsets.get(stage)
        hook.offset = offset if offset is None or offset.requires_grad or bool(offset.any()) else None


def at_positions(vectors: Tensor, positions: Tensor) -> Tensor:
    """Vectors `[V, D]` at their places: `[..., T, D]` of positions `[..., T]`, which say which vector (-1: none)."""
    places = torch.nn.functional.one_hot(positions.clamp(min=0), len(vectors)).to(vectors.dtype)
    return (places * (positions >= 0).unsqueeze(-1).to(vectors.dtype)) @ vectors
