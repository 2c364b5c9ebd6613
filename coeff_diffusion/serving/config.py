"""How drawing is served: the flags of `serve`, and who may ask."""

from dataclasses import dataclass, field
from typing import Literal

from ..subject.errors import UserError
from ..subject.user_file import read_text, user_path

MAX_TOKENS = 2**20  # bytes of a file of tokens
SHORTEST_TOKEN = 16  # characters
EVERYWHERE, HERE = "0.0.0.0", "127.0.0.1"


class ServeError(UserError, ValueError):
    """Drawing cannot be served as asked."""


@dataclass(frozen=True)
class ServeConfig:
    """Draw for other programs: POST /draw, on replicas of Ray Serve that share batches among users."""

    ray: str = field(default="local", metadata={"bare": "local"})
    """A Ray cluster (auto, HOST:6379, ray://HOST:10001), or local: processes of this machine."""
    base: str = "embedded"
    """The base: "embedded", a diffusers folder, a .safetensors checkpoint or a Hub id; the same on every machine."""
    revision: str | None = None
    """Branch, tag or commit of a base from the Hub."""
    base_config: str | None = None
    """For a single checkpoint: the diffusers folder or Hub id its component configs are read from."""
    pretrained_vae_model_name_or_path: str | None = None
    """An autoencoder instead of the base's own: a diffusers folder, a .safetensors file or a Hub id."""
    subjects_dir: str = "outputs"
    """The folder whose subjects can be asked for; on a cluster, one that all machines have."""
    port: int = 8000
    """Port of the service."""
    listen: bool = False
    """Let other machines of the network ask (needs --tokens)."""
    tokens: str | None = None
    """A file with a token a line; who asks has to give one of them (Authorization: Bearer TOKEN)."""
    replicas: int = 1
    """Copies of the base that draw at the same time."""
    cpus_per_replica: float = 1
    """Cores of a replica."""
    gpus_per_replica: float | None = None
    """GPUs of a replica; left out, 1 where the cluster has any."""
    pictures_at_once: int = 8
    """The most pictures in a batch of a replica."""
    batch_wait: float = 0.05
    """Seconds that a picture waits for others to be drawn with."""
    max_queued: int = 64
    """Requests that may wait for a replica; more are refused with 503 and Retry-After."""
    device: str = "auto"
    """cpu, cuda, cuda:1, mps; auto is the GPU where there is one."""
    dtype: str = "float32"
    """Of the base's weights: float32, float16, bfloat16."""
    quantization: Literal["no", "int8"] = "no"
    """int8 keeps the base's linear layers in eight bits: half the memory of half precision, a little slower and a
    little less exact."""


def read_tokens(config: ServeConfig) -> tuple[str, ...]:
    """The tokens of which who asks has to give one; none where nobody is asked for any.

    Raises:
        ServeError: a file of tokens that cannot be read, is empty, or holds one that is easily guessed; others can ask
            and nobody is asked for one.
    """
    if config.tokens is None:
        if config.listen:
            raise ServeError("--listen lets others draw on this machine; add --tokens FILE, with a token a line")
        return ()
    lines = [line.strip() for line in read_text(user_path(config.tokens), MAX_TOKENS, ServeError).splitlines()]
    found = tuple(line for line in lines if line)
    if not found or any(len(token) < SHORTEST_TOKEN for token in found):  # a token is never repeated in a message
        raise ServeError(
            f"--tokens: {config.tokens} has to hold tokens of {SHORTEST_TOKEN} characters or more, one a line"
        )
    return found


def check(config: ServeConfig) -> None:
    """Raises ServeError: numbers that cannot work."""
    least = {"replicas": 1, "pictures_at_once": 1, "max_queued": 1, "batch_wait": 0, "cpus_per_replica": 0}
    problems = [
        f"--{name} is {getattr(config, name)}, expected at least {low}"
        for name, low in least.items()
        if not low <= getattr(config, name) < float("inf")
    ]
    if not 1 <= config.port <= 65535:
        problems.append(f"--port is {config.port}, expected 1 to 65535")
    if config.gpus_per_replica is not None and not 0 <= config.gpus_per_replica < float("inf"):
        problems.append(f"--gpus_per_replica is {config.gpus_per_replica}, expected at least 0")
    if problems:
        raise ServeError("; ".join(problems))
