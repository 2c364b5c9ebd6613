"""A CLIP tokenizer of a few words, in CLIP's own form."""

from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTokenizer

# Words the tiny tokenizer knows as one token each; all else falls back to bytes.
WORDS = "a photo of the dog cat pot in on snow beach red blue grass"


def tiny_tokenizer() -> CLIPTokenizer:
    """Byte-level BPE in CLIP's own form: any text tokenizes, the words of `WORDS` as one token each."""
    letters = sorted(ByteLevel.alphabet())
    merges: list[tuple[str, str]] = []
    for word in WORDS.split():
        stem = word[0] if len(word) > 1 else f"{word}</w>"
        for i, letter in enumerate(word[1:], start=2):
            merge = (stem, letter + ("</w>" if i == len(word) else ""))
            if merge not in merges:
                merges.append(merge)
            stem = "".join(merge)
    tokens = dict.fromkeys([*letters, *(f"{x}</w>" for x in letters), *map("".join, merges)])
    vocabulary = {token: i for i, token in enumerate([*tokens, "<|startoftext|>", "<|endoftext|>"])}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=77)
