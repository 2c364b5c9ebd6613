"""The flags of the commands that are about a subject's file; those with more flags have a file of their own.

Nothing is imported here, so that `--help` answers at once.
"""

from dataclasses import dataclass, field
from typing import Literal


@dataclass
class InfoConfig:
    """Show what a subject's file or a picture carries."""

    file: str = field(metadata={"positional": True})
    """A subject's file, a folder with one, a Hub id ("user/repo"), or a picture."""
    json: bool = False
    """Print one JSON object instead; docs/commands.md lists its keys."""


@dataclass
class VerifyConfig:
    """Check that a subject fits a base. No weight is loaded: the base's configs tell."""

    file: str = field(metadata={"positional": True})
    """The subject: file, folder, card or Hub id."""
    base: str | None = None
    """The base: "embedded", a diffusers folder, a .safetensors checkpoint, or a Hub id (its configs are fetched, no
    weights). Left out, it is the one that the file names, if that is embedded or lies in the Hub's cache."""
    revision: str | None = None
    """Branch, tag or commit of a base from the Hub."""
    base_config: str | None = None
    """For a single checkpoint: the diffusers folder or Hub id its configs are read from; left out, the family is told
    from its tensors, and its configs come from the Hub."""


@dataclass
class ConvertConfig:
    """Write a subject again as a file: with wider or narrower numbers, or with its strongest layers alone."""

    file: str = field(metadata={"positional": True})
    """The subject: file, folder, card or Hub id."""
    output: str = field(metadata={"short": "-o"})
    """The .safetensors file to write."""
    dtype: Literal["auto", "float32", "float16", "bfloat16", "int8"] = "auto"
    """Of the numbers in the file. float32 keeps every bit; float16 and bfloat16 take half the size and round to about 3
    digits and 2, int8 takes a quarter and rounds each layer to whole steps of a 127th of its largest number. Every
    reader widens them again; programs that know no int8 yet refuse such a file. auto is float16 where that keeps every
    bit, float32 else."""
    overwrite: bool = False
    """Replace the output where it exists."""
    keep: str = "100%"
    """Leave out all but the layers whose coefficients are the strongest, as many as fit into this share of their
    numbers: 50%. At 0% only the learned word is left."""


@dataclass
class BlendConfig:
    """Mix several subjects of one base into one: the weighted sum of their coefficients. Learned tokens can only be
    mixed where all that have one share the trigger; their weighted mean is taken."""

    subject: list[str] = field(metadata={"positional": True})
    """A subject (file, folder, card or Hub id) and after a colon its weight: dog.safetensors:0.7; 1 if left out."""
    output: str = field(metadata={"short": "-o"})
    """The .safetensors file to write."""
    name: str | None = None
    """What to call the result; left out, it says what was blended."""
    overwrite: bool = False
    """Replace the output where it exists."""


@dataclass
class CardConfig:
    """Make a card: a picture (PNG) that carries a subject. Whoever gets the picture can draw with the subject."""

    subject: str = field(metadata={"positional": True})
    """The subject: file, folder, Hub id, or another card."""
    picture: str = field(metadata={"positional": True})
    """The picture, in any format; what is not a PNG becomes one, without loss. What a PNG carries already stays."""
    output: str = field(metadata={"short": "-o"})
    """Where the card goes (.png)."""
    overwrite: bool = False
    """Replace a file that is there already."""


@dataclass
class QrConfig:
    """Write a subject as a picture of one QR code, its numbers rounded to 8 bits. It survives what a card does not:
    JPEG, screenshots, scaling, chats that strip pictures of all but their pixels. Prompts, licence and training are
    not kept, only name, trigger, class word and which base it is for."""

    subject: str = field(metadata={"positional": True})
    """The subject: file, folder, card or Hub id."""
    output: str = field(metadata={"short": "-o"})
    """The PNG to write."""
    picture: str | None = None
    """A picture to show above the code, with the trigger between them, on one sheet."""
    overwrite: bool = False
    """Replace the output where it exists."""


@dataclass
class PushConfig:
    """Upload a subject to the Hub: its coefficients, the adapter that learned with them, its card and the pictures of
    its last preview, nothing else."""

    subject: str = field(metadata={"positional": True})
    """The subject: folder of a training run, .safetensors file or card (a PNG that carries it)."""
    repo: str = field(metadata={"positional": True})
    """Where to: an id on the Hub (user/my-dog), or a folder (./my-dog) that gets the same files."""
    private: bool = False
    """Make a repository that only you see; one that is there and public is refused."""
    license: str | None = None
    """Licence of the subject, such as cc0-1.0 or cc-by-4.0; left out, the one it was trained with."""
    message: str | None = None
    """Message of the commit."""
    token_file: str | None = None
    """File that holds an access token; left out, the login of `hf auth login` or HF_TOKEN."""
    dry_run: bool = False
    """Only list what would be uploaded."""
    overwrite: bool = False
    """Where it goes to a folder: take the place of a subject that is there. The Hub needs no leave: it keeps earlier
    versions."""


@dataclass
class PullConfig:
    """Fetch a subject, its card and its pictures from the Hub into a new folder, once all of it is checked."""

    repo: str = field(metadata={"positional": True})
    """An id on the Hub (user/my-dog or user/my-dog@revision), or a folder with the same files."""
    output: str = field(metadata={"short": "-o"})
    """The folder to write."""
    revision: str | None = None
    """Branch, tag or commit."""
    overwrite: bool = False
    """Take the place of a subject that is in that folder."""
