"""Triggers with learned vectors: read as tokens of their own by a text encoder and its tokenizer, and back.

Legend: D channels of a token embedding; P texts, T text positions.
"""

import copy
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from tokenizers import AddedToken, normalizers
from torch import Tensor, nn

from ..subject.errors import CoefficientsError
from .trigger import canonical, replacing, triggers_clash

# What configs of CLIP from before 2023 have for the id of the end: it means "where the highest id of a prompt stands".
HIGHEST_ID = 2


@dataclass
class LearnedTrigger:
    """One trigger with learned vectors in a text encoder."""

    trigger: str
    vectors: Tensor  # [vectors, D] float32; a parameter in training
    first_id: int = -1  # token id of the first vector, the others follow; depends on what else is loaded
    users: int = 1  # how often it was added: pipelines may share a text encoder
    start: Tensor | None = None  # [vectors, D] float32: what strength 0 is; without it there are no strengths
    rows: Sequence[float] = ()  # its strength in each text of an encoding; nothing is 1 in all


class TriggerEmbedding(nn.Embedding):
    """A text encoder's token embedding with the learned vectors of triggers beside the base's table.

    Shares the base's weight and keeps the vectors out of the module's parameters, so that the text encoder's
    `state_dict`, dtype and freezing are the stock model's, and the vectors stay float32.

    Args:
        base: the embedding that was there.
        tokenizer: the tokenizer that goes with it. It stays the same object, so that all who have it read alike; what
            it computes with is exchanged, and given back at the end.

    Attributes:
        learned: the triggers by the name of their subject.
    """

    def __init__(self, base: nn.Embedding, tokenizer: Any) -> None:
        super().__init__(base.num_embeddings, base.embedding_dim, base.padding_idx, device="meta")
        self.weight = base.weight
        self.train(base.training)
        self._base = (base,)  # in a tuple, to keep it out of the module tree, which has its weight already
        self.tokenizer = tokenizer
        self.base_backend = self.taught_backend = tokenizer._tokenizer
        self.learned: dict[str, LearnedTrigger] = {}
        self.pooled_at_highest = False

    def reads_with(self, tokenizer: Any) -> bool:
        """Whether this is the tokenizer that knows the triggers, with what it was taught."""
        return tokenizer is self.tokenizer and tokenizer._tokenizer is self.taught_backend

    def stand_on(self, base: nn.Embedding) -> None:
        """Put the learned vectors beside another table: the base's, after someone has added words to it."""
        self.num_embeddings, self.weight, self._base = base.num_embeddings, base.weight, (base,)
        self.base_backend = self.tokenizer._tokenizer

    @property
    def base(self) -> nn.Embedding:
        """The embedding that was there."""
        return self._base[0]

    @property
    def vectors(self) -> dict[str, Tensor]:
        """The learned vectors by subject, `[vectors, D]` float32; parameters where they are in training."""
        return {name: learned.vectors for name, learned in self.learned.items()}

    def places(self, name: str, texts: Sequence[str]) -> Tensor:
        """Where a trigger's vectors stand in texts as the encoder reads them: `[P, T]`, the vector's number or -1."""
        learned, longest = self.learned[name], self.tokenizer.model_max_length
        ids = self.tokenizer(
            list(texts), padding="max_length", max_length=longest, truncation=True, return_tensors="pt"
        ).input_ids
        number = ids - learned.first_id
        return number.where((number >= 0) & (number < len(learned.vectors)), -1)

    @contextmanager
    def at_strengths(self, name: str, rows: Sequence[float]) -> Iterator[None]:
        """Meanwhile a trigger's vectors are between where it started (0) and what was learned (1), or beyond.

        Args:
            rows: the strength in each text of an encoding.
        """
        learned = self.learned[name]
        before, learned.rows = learned.rows, tuple(rows)
        try:
            yield
        finally:
            learned.rows = before

    @staticmethod
    def _rows(learned: LearnedTrigger, input: Tensor) -> Tensor:
        """The strengths for token ids `[B, L]`, `[B, 1, 1]` float32 or, where all are one, `[1, 1, 1]`."""
        rows = learned.rows[:1] if len(set(learned.rows)) == 1 else learned.rows
        if len(rows) not in (1, len(input)):
            raise CoefficientsError(
                f"{learned.trigger!r} has {len(rows)} strengths, but {len(input)} texts are encoded at once"
            )
        return torch.tensor(rows, dtype=torch.float32, device=input.device).view(-1, 1, 1)

    def forward(self, input: Tensor) -> Tensor:
        """Token ids `[B, L]` to embeddings `[B, L, D]`; ids of the base's table give its rows, bitwise."""
        hidden: Tensor = self.base(input.clamp(max=self.num_embeddings - 1))
        for learned in self.learned.values():
            index = input - learned.first_id  # [B, L]
            ours = (index >= 0) & (index < len(learned.vectors))
            index = index.where(ours, 0)
            vectors = learned.vectors.to(input.device)[index]  # [B, L, D]
            if learned.start is not None and any(strength != 1 for strength in learned.rows):
                start, rows = learned.start.to(input.device)[index], self._rows(learned, input)
                vectors = torch.lerp(start, vectors, rows)  # exact at both ends
            hidden = torch.where(ours.unsqueeze(-1), vectors.to(hidden.dtype), hidden)
        return hidden


def add_trigger(
    tokenizer: Any,
    text_encoder: Any,
    name: str,
    trigger: str,
    vectors: Tensor,
    *,
    trainable: bool = False,
    class_word: str | None = None,
) -> str:
    """Teach a text encoder and its tokenizer a trigger with vectors of its own.

    Args:
        tokenizer: reads the whole trigger as these tokens from now on, anywhere.
        text_encoder: its token embedding becomes a `TriggerEmbedding`.
        name: the subject's name.
        vectors: `[vectors, D]`, one token per vector.
        class_word: what it was learned from, for `at_strengths`; empty: the trigger's own words. Without it there are
            no strengths.
        trainable: make `text_encoder.get_input_embeddings().vectors[name]` a float32 parameter.

    Returns:
        What to remove it by: the name, or that of another pipeline's subject that has the very same trigger and vectors
        already.

    Raises:
        CoefficientsError: the trigger has no letter, clashes with another one or with an added token, the name is
            taken, the width does not fit, or the tokenizer is another one; nothing has changed then.
    """
    embedding = text_encoder.get_input_embeddings()
    if not isinstance(embedding, TriggerEmbedding):
        embedding = TriggerEmbedding(embedding, tokenizer)
    for key, learned in embedding.learned.items():
        same = learned.trigger == canonical(trigger) and learned.vectors.shape == vectors.shape
        if same and not trainable and torch.equal(learned.vectors.cpu(), vectors.float().cpu()):
            learned.users += 1
            return key
    _check(embedding, tokenizer, name, trigger, vectors)
    own = vectors.detach().to(_device(embedding), torch.float32, copy=True)
    learned = LearnedTrigger(canonical(trigger), nn.Parameter(own) if trainable else own)
    if class_word is not None:
        learned.start = _start(embedding, [class_word, trigger], len(vectors))
    _teach(embedding, {**embedding.learned, name: learned})
    embedding.learned[name] = learned
    _take_over(text_encoder, embedding)
    return name


def remove_trigger(text_encoder: Any, name: str) -> None:
    """Undo `add_trigger`. With the last trigger out, embedding and tokenizer are as they were, with the same parts.

    Raises:
        CoefficientsError: there is no trigger of this name.
    """
    embedding = text_encoder.get_input_embeddings()
    if not isinstance(embedding, TriggerEmbedding) or name not in embedding.learned:
        raise CoefficientsError(f"the text encoder knows no trigger of {name!r}")
    learned = embedding.learned[name]
    learned.users -= 1
    if learned.users:
        return
    del embedding.learned[name]
    if embedding.learned:
        _teach(embedding, embedding.learned)
    else:
        _give_back(text_encoder, embedding)


def forget_trigger(text_encoder: Any, embedding: TriggerEmbedding, name: str) -> None:
    """`remove_trigger`, also where someone has put another embedding in place of ours, resized it, or the tokenizer.

    What they put there stays: it was asked for later. The words are read as words again.
    """
    if text_encoder.get_input_embeddings() is embedding and embedding.reads_with(embedding.tokenizer):
        remove_trigger(text_encoder, name)
        return
    embedding.learned.pop(name, None)
    if text_encoder.get_input_embeddings() is embedding and not embedding.learned:
        text_encoder.set_input_embeddings(embedding.base)
    if not embedding.learned:
        _pool_as_before(text_encoder, embedding)
    embedding.tokenizer._tokenizer.normalizer = embedding.base_backend.normalizer


@contextmanager
def without_triggers(text_encoder: Any) -> Iterator[None]:
    """The text encoder and its tokenizer as they were before any trigger, for others to change; then taught again."""
    embedding = text_encoder.get_input_embeddings()
    if not isinstance(embedding, TriggerEmbedding):
        yield
        return
    backend, known = embedding.taught_backend, embedding.base_backend.get_vocab_size()
    _give_back(text_encoder, embedding)
    try:
        yield
    finally:
        same_words = embedding.tokenizer._tokenizer is embedding.base_backend
        embedding.stand_on(text_encoder.get_input_embeddings())
        if same_words and embedding.base_backend.get_vocab_size() == known:
            embedding.tokenizer._tokenizer = backend
        else:
            _teach(embedding, embedding.learned)
        _take_over(text_encoder, embedding)


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
    return _mean_vectors(text_encoder.get_input_embeddings(), ids, vectors)


@torch.no_grad()
def _start(embedding: TriggerEmbedding, words: Sequence[str], vectors: int) -> Tensor:
    """`initial_vectors` of the first of the words that has a token, as the base reads it."""
    for word in words:
        encoding = embedding.base_backend.encode(word, add_special_tokens=False)
        # Once the pipeline has drawn, its tokenizer pads whatever it reads to the length of a prompt.
        if ids := [one for one, is_read in zip(encoding.ids, encoding.attention_mask, strict=True) if is_read]:
            return _mean_vectors(embedding.base, ids, vectors)
    raise CoefficientsError(f"there is no token in {' and '.join(map(repr, words))}")


def _device(embedding: nn.Embedding) -> torch.device:
    """Where it takes token ids: on the CPU where its weights are elsewhere for the time being (sequential offload)."""
    return torch.device("cpu") if embedding.weight.is_meta else embedding.weight.device


def _mean_vectors(embedding: nn.Embedding, ids: Sequence[int], vectors: int) -> Tensor:
    mean = embedding(torch.tensor(list(ids), device=_device(embedding))).float().mean(0).cpu()  # [D]
    start = mean.repeat(vectors, 1)  # [vectors, D]
    noise = torch.randn(start.shape, generator=torch.Generator().manual_seed(0))
    start[1:] += 0.1 * mean.std() * noise[1:]
    return start


def _check(embedding: TriggerEmbedding, tokenizer: Any, name: str, trigger: str, vectors: Tensor) -> None:
    if not re.search(r"\w", trigger):
        raise CoefficientsError(f"the trigger is {trigger!r}, expected at least one letter or digit")
    if tokenizer is not embedding.tokenizer:
        raise CoefficientsError("the text encoder has learned triggers with another tokenizer; unload them first")
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
    for token in (added.content for added in embedding.base_backend.get_added_tokens_decoder().values()):
        if canonical(token) in canonical(trigger):
            raise CoefficientsError(f"the trigger {trigger!r} of {name!r} clashes with the tokenizer's token {token!r}")


def _teach(embedding: TriggerEmbedding, triggers: dict[str, LearnedTrigger]) -> None:
    """Let the tokenizer read each trigger as its own tokens, whose ids are noted in `triggers`."""
    backend, first_ids = taught(embedding.base_backend, {one.trigger: len(one.vectors) for one in triggers.values()})
    for learned in triggers.values():
        learned.first_id = first_ids[learned.trigger]
    embedding.tokenizer._tokenizer = embedding.taught_backend = backend


def taught(base_backend: Any, triggers: Mapping[str, int]) -> tuple[Any, dict[str, int]]:
    """A copy of what a tokenizer computes with that reads each trigger as so many tokens, and the first id of each.

    The normalizer puts placeholders where a trigger stands. They are joined by underscores, which count as letters, so
    no trigger is ever found inside a placeholder.
    """
    backend, first_ids = copy.deepcopy(base_backend), {}
    steps = [backend.normalizer]
    for trigger, vectors in triggers.items():
        # With the size of the vocabulary in it a name is new, even if the tokenizer was saved with such tokens before.
        word, size = re.sub(r"\W+", "_", trigger), backend.get_vocab_size()
        places = [f"<{word}_{size}_{i}>" for i in range(vectors)]
        backend.add_tokens([AddedToken(place, normalized=True) for place in places])
        first_ids[trigger] = backend.token_to_id(places[0])
        steps.append(replacing(trigger, "".join(places)))
    backend.normalizer = normalizers.Sequence([step for step in steps if step is not None])
    return backend, first_ids


def _take_over(text_encoder: Any, embedding: TriggerEmbedding) -> None:
    text_encoder.set_input_embeddings(embedding)
    pools = _pooling(text_encoder)
    if getattr(pools, "eos_token_id", None) == HIGHEST_ID:
        # The same place, as long as the end's id is the highest; learned words have higher ones.
        pools.eos_token_id = embedding.tokenizer.eos_token_id
        embedding.pooled_at_highest = True


def _pooling(text_encoder: Any) -> Any:
    """The module that makes one vector of a whole prompt."""
    return getattr(text_encoder, "text_model", text_encoder)


def _pool_as_before(text_encoder: Any, embedding: TriggerEmbedding) -> None:
    if embedding.pooled_at_highest:
        _pooling(text_encoder).eos_token_id, embedding.pooled_at_highest = HIGHEST_ID, False


def _give_back(text_encoder: Any, embedding: TriggerEmbedding) -> None:
    _pool_as_before(text_encoder, embedding)
    embedding.base.weight = embedding.weight  # another object where the weights have moved to another kind of device
    text_encoder.set_input_embeddings(embedding.base)
    embedding.tokenizer._tokenizer = embedding.base_backend
