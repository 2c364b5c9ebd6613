"""How the page is opened: its flags, and who may reach it."""

from dataclasses import dataclass
from typing import Literal

from ..subject.errors import UserError
from ..subject.user_file import read_text, user_path

MAX_AUTH = 2**20  # bytes of a file of users
MAX_SESSION = 8_760  # hours: a year

LOCALHOST = "127.0.0.1"
MAX_UPLOAD = "25mb"  # one photo of a good camera; what a subject's file or a card may have is checked when it is read


class PageError(UserError, ValueError):
    """The page cannot be opened as asked."""


@dataclass
class PageConfig:
    """Open the page: pick subjects, write a prompt, draw."""

    base: str = "embedded"
    """The base: "embedded", a diffusers folder, a .safetensors checkpoint or a Hub id."""
    revision: str | None = None
    """Branch, tag or commit of a base from the Hub."""
    base_config: str | None = None
    """For a single checkpoint: the diffusers folder or Hub id its component configs are read from."""
    pretrained_vae_model_name_or_path: str | None = None
    """An autoencoder instead of the base's own: a diffusers folder, a .safetensors file or a Hub id. A checkpoint
    without one needs it; madebyollin/sdxl-vae-fp16-fix lets Stable Diffusion XL stay in float16."""
    subjects_dir: str = "outputs"
    """The folder whose subjects the page offers; what is uploaded is copied into it."""
    styles_dir: str | None = None
    """The folder with styles.csv (A1111's form) and with wildcards/colour.txt for __colour__ in prompts; left out,
    ~/.config/coeff-diffusion."""
    caption_model: str | None = None
    """A captioning model of transformers (BLIP or Florence-2; a folder or a Hub id): Train then offers to write the
    captions of dropped pictures."""
    output_dir: str = "outputs/pictures"
    """Where every drawn picture is saved, under the next free number."""
    port: int = 7860
    """Port of the page; 0 is any free one."""
    listen: bool = False
    """Let other machines of the network reach the page (needs --auth)."""
    share: bool = False
    """Open a public link through Gradio's servers (needs --auth)."""
    host_names: str = ""
    """Other names that the page is reached by, such as that of a proxy in front of it, with commas between; others than
    those and this machine's own are refused."""
    auth: str | None = None
    """user:password that the page asks for, or a file with one such line per user (a file keeps it out of the
    process list)."""
    session_hours: float = 24
    """Hours that a login lasts, with --auth."""
    open_browser: bool = False
    """Open the page in the browser."""
    device: str = "auto"
    """cpu, cuda, cuda:1, mps; auto is the GPU where there is one."""
    dtype: str = "float32"
    """Of the base's weights: float32, float16, bfloat16."""
    quantization: Literal["no", "int8"] = "no"
    """int8 keeps the base's linear layers in eight bits: half the memory of half precision, a little slower and a
    little less exact."""


def read_auth(auth: str | None) -> list[tuple[str, str]]:
    """Users and passwords from `user:password` or from a file of such lines.

    Raises:
        PageError: a line without a user or without a password.
    """
    if auth is None:
        return []
    path = user_path(auth)
    lines = read_text(path, MAX_AUTH, PageError).splitlines() if path.exists() else [auth]
    users = []
    for line in lines:
        if line.strip():
            user, _, password = line.strip().partition(":")
            if not user or not password:  # the line itself may be a password: never repeat it
                raise PageError("--auth wants user:password, or a file with one user:password per line")
            users.append((user, password))
    if not users:
        raise PageError(f"--auth: the file {auth!r} names no user")
    return users


def check(config: PageConfig) -> list[tuple[str, str]]:
    """The users of the page, once it is certain that nobody else can reach it.

    Raises:
        PageError: reachable from outside without a password, an impossible port, or logins of no duration.
    """
    users = read_auth(config.auth)
    open_to = [flag for flag, on in (("--share", config.share), ("--listen", config.listen)) if on]
    if open_to and not users:
        raise PageError(
            f"{' and '.join(open_to)} lets others draw on this machine; add --auth user:password (or a file of them)"
        )
    if not 0 < config.session_hours <= MAX_SESSION:
        raise PageError(f"--session_hours is {config.session_hours:g}, expected more than 0, at most {MAX_SESSION}")
    if not 0 <= config.port <= 65535:
        raise PageError(f"--port is {config.port}, expected 0 to 65535")
    return users
