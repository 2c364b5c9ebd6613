"""The trigger: the words that call a subject up, found in prompts and, where learned, read as tokens of their own.

One rule, run by one regular expression engine, decides both what the gate sees and what the tokenizer replaces: case,
Unicode form and runs of white space do not matter, word boundaries do. "Sks  dog" and "sks dog's" hold the trigger
"sks dog"; "sks dogs" does not.

Legend: D channels of a token embedding.
"""

import copy
import functools
import re
import unicodedata
from dataclasses import dataclass
from typing import Any

import torch
from tokenizers import AddedToken, Regex, normalizers
from torch import Tensor, nn

from ..subject.errors import CoefficientsError

# As CLIP's own tokenizer does it: composed, single spaces, lower case.
CANONICAL = normalizers.Sequence([normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()])


def canonical(text: str) -> str:
    """A text as CLIP's tokenizer sees it."""
    return CANONICAL.normalize_str(text).strip()


def contains_trigger(prompt: str, trigger: str) -> bool:
    """Whether a prompt calls up the subject of `trigger`."""
    prompt = CANONICAL.normalize_str(prompt)
    return _replaces(trigger, "").normalize_str(prompt) != prompt


def triggers_clash(first: str, second: str) -> bool:
    """Whether no prompt could call up one of two triggers without the other."""
    return bool(first and second) and (contains_trigger(first, second) or contains_trigger(second, first))


def replace_trigger(prompt: str, trigger: str, words: str) -> str:
    """The prompt with other words in place of the trigger, the rest as it was written."""
    pattern = _pattern(trigger).replace(r"\ ", r"\s+")
    return re.sub(pattern, lambda _: words, unicodedata.normalize("NFC", prompt), flags=re.IGNORECASE)


@dataclass
class LearnedTrigger:
    """One trigger with learned vectors in a text encoder."""

    trigger: str
    vectors: Tensor  # [vectors, D] float32; a parameter in training
    first_id: int = -1  # token id of the first vector, the others follow; depends on what else is loaded


class TriggerEmbedding(nn.Embedding):
    """A text encoder's token embedding with the learned vectors of triggers beside the base's table.

    Shares the base's weight and keeps the vectors out of the module's parameters, so that the text encoder's
    `state_dict`, dtype and freezing are the stock model's, and the vectors stay float32.

    Args:
        base: the embedding that was there.
        tokenizer: the tokenizer that goes with it.

    Attributes:
        learned: the triggers by the name of their subject.
    """

    def __init__(self, base: nn.Embedding, tokenizer: Any) -> None:
        super().__init__(base.num_embeddings, base.embedding_dim, base.padding_idx, device="meta")
        self.weight = base.weight
        self.train(base.training)
        self._base = (base,)  # in a tuple, to keep it out of the module tree, which has its weight already
        self.base_tokenizer = tokenizer
        self.learned: dict[str, LearnedTrigger] = {}

    @property
    def base(self) -> nn.Embedding:
        """The embedding that was there."""
        return self._base[0]

    @property
    def vectors(self) -> dict[str, Tensor]:
        """The learned vectors by subject, `[vectors, D]` float32; parameters where they are in training."""
        return {name: learned.vectors for name, learned in self.learned.items()}

    def forward(self, input: Tensor) -> Tensor:
        """Token ids `[B, L]` to embeddings `[B, L, D]`; ids of the base's table give its rows, bitwise."""
        hidden: Tensor = self.base(input.clamp(max=self.num_embeddings - 1))
        for learned in self.learned.values():
            index = input - learned.first_id  # [B, L]
            ours = (index >= 0) & (index < len(learned.vectors))
            vectors = learned.vectors.to(input.device)[index.where(ours, 0)]  # [B, L, D]
            hidden = torch.where(ours.unsqueeze(-1), vectors.to(hidden.dtype), hidden)
        return hidden


def add_trigger(
    tokenizer: Any, text_encoder: Any, name: str, trigger: str, vectors: Tensor, *, trainable: bool = False
) -> Any:
    """Teach a text encoder a trigger with vectors of its own.

    Args:
        tokenizer: the tokenizer in use; it is not changed.
        text_encoder: its token embedding becomes a `TriggerEmbedding`.
        name: the subject's name, to remove it by.
        vectors: `[vectors, D]`, one token per vector.
        trainable: make `text_encoder.get_input_embeddings().vectors[name]` a float32 parameter.

    Returns:
        The tokenizer to use from now on: a copy that reads the whole trigger as these tokens, anywhere.

    Raises:
        CoefficientsError: the trigger has no letter, clashes with another one or with an added token, the name is
            taken, or the width does not fit; nothing has changed then.
    """
    embedding = text_encoder.get_input_embeddings()
    if not isinstance(embedding, TriggerEmbedding):
        embedding = TriggerEmbedding(embedding, tokenizer)
    _check(embedding, name, trigger, vectors)
    own = vectors.detach().to(embedding.weight.device, torch.float32, copy=True)
    learned = LearnedTrigger(canonical(trigger), nn.Parameter(own) if trainable else own)
    tokenizer = _tokenizer_with(embedding.base_tokenizer, {**embedding.learned, name: learned})
    embedding.learned[name] = learned
    text_encoder.set_input_embeddings(embedding)
    return tokenizer


def remove_trigger(text_encoder: Any, name: str) -> Any:
    """Undo `add_trigger`.

    Returns:
        The tokenizer to use from now on. With the last trigger out, it and the embedding are the original objects.

    Raises:
        CoefficientsError: there is no trigger of this name.
    """
    embedding = text_encoder.get_input_embeddings()
    if not isinstance(embedding, TriggerEmbedding) or name not in embedding.learned:
        raise CoefficientsError(f"the text encoder knows no trigger of {name!r}")
    del embedding.learned[name]
    if embedding.learned:
        return _tokenizer_with(embedding.base_tokenizer, embedding.learned)
    embedding.base.weight = embedding.weight  # another object where the weights have moved to another kind of device
    text_encoder.set_input_embeddings(embedding.base)
    return embedding.base_tokenizer


@torch.no_grad()
def initial_vectors(tokenizer: Any, text_encoder: Any, class_word: str, vectors: int = 1) -> Tensor:
    """Where the learned vectors start: the mean embedding of the class word, `[vectors, D]` float32 on the CPU.

    Further vectors get a little noise, always the same, or they would learn the same.

    Raises:
        CoefficientsError: the class word gives no token, or `vectors` is below one.
    """
    ids = tokenizer(class_word, add_special_tokens=False).input_ids
    if not ids or vectors < 1:
        raise CoefficientsError(
            f"cannot start {vectors} vectors from the class word {class_word!r}; expected a word and 1 or more vectors"
        )
    embedding = text_encoder.get_input_embeddings()
    mean = embedding(torch.tensor(ids, device=embedding.weight.device)).float().mean(0).cpu()  # [D]
    start = mean.repeat(vectors, 1)  # [vectors, D]
    noise = torch.randn(start.shape, generator=torch.Generator().manual_seed(0))
    start[1:] += 0.1 * mean.std() * noise[1:]
    return start


def _pattern(trigger: str) -> str:
    """A regular expression that finds the trigger in canonical text; valid for Python and for tokenizers."""
    return rf"(?<!\w){re.escape(canonical(trigger))}(?!\w)"


@functools.lru_cache
def _replaces(trigger: str, words: str) -> normalizers.Replace:
    return normalizers.Replace(Regex(_pattern(trigger)), words)


def _check(embedding: TriggerEmbedding, name: str, trigger: str, vectors: Tensor) -> None:
    if not re.search(r"\w", trigger):
        raise CoefficientsError(f"the trigger is {trigger!r}, expected at least one letter or digit")
    if name in embedding.learned:
        raise CoefficientsError(f"{name!r} already has a trigger, {embedding.learned[name].trigger!r}; remove it first")
    if vectors.ndim != 2 or not len(vectors) or vectors.shape[1] != embedding.embedding_dim:
        raise CoefficientsError(
            f"the token of {trigger!r} is {list(vectors.shape)}, but this text encoder takes [vectors, "
            f"{embedding.embedding_dim}]"
        )
    for other, learned in embedding.learned.items():
        if triggers_clash(trigger, learned.trigger):
            raise CoefficientsError(
                f"the trigger {trigger!r} of {name!r} clashes with {learned.trigger!r} of {other!r}"
            )
    for token in embedding.base_tokenizer.added_tokens_encoder:
        if canonical(token) in canonical(trigger):
            raise CoefficientsError(f"the trigger {trigger!r} of {name!r} clashes with the tokenizer's token {token!r}")


def _tokenizer_with(base: Any, triggers: dict[str, LearnedTrigger]) -> Any:
    """A copy of a tokenizer that reads each trigger as its own tokens, whose ids it notes in `triggers`.

    The normalizer puts placeholders where a trigger stands. They are joined by underscores, which count as letters, so
    no trigger is ever found inside a placeholder.
    """
    tokenizer = copy.deepcopy(base)
    steps = [tokenizer.backend_tokenizer.normalizer]
    for learned in triggers.values():
        # With the size of the vocabulary in it a name is new, even if the tokenizer was saved with such tokens before.
        word, size = re.sub(r"\W+", "_", learned.trigger), len(tokenizer)
        places = [f"<{word}_{size}_{i}>" for i in range(len(learned.vectors))]
        tokenizer.add_tokens([AddedToken(place, normalized=True) for place in places])
        learned.first_id = tokenizer.convert_tokens_to_ids(places[0])
        steps.append(_replaces(learned.trigger, "".join(places)))
    tokenizer.backend_tokenizer.normalizer = normalizers.Sequence(steps)
    return tokenizer
