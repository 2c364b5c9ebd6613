"""Drawing as an application of Ray Serve: a door that checks requests, and replicas that draw them in shared batches.

Ray Serve does what is asked of it elsewhere, too: it spreads requests over replicas, gathers batches, replaces replicas
that die, and refuses what would wait too long.
"""

import asyncio
import logging
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

from ..families.load import load_base
from ..images.drawing_settings import DrawRequest
from ..inference.studio import Studio
from ..sources.library import Library
from ..sources.open import open_subject
from ..subject.errors import CoefficientsError
from ..training.ray_cluster import cluster
from ..training.signals import kept_handlers
from .answers import Answer
from .config import EVERYWHERE, HERE, ServeConfig, ServeError, check, read_tokens
from .front import Front, OverloadedError
from .shared_batches import SharedBatches

NAME = "coeff-diffusion"
DRAWER = "Drawer"
TRIES = 2  # to start a replica; a base that is not there is not there the next time, either
MANY = 1_000_000  # requests at the door, which only looks at them


def serve_drawing(config: ServeConfig, say: Callable[[str], None] = print) -> None:
    """Serve until Ctrl-C, SIGTERM or SIGHUP.

    Raises:
        ServeError: settings that cannot work. ConfigError: no Ray, or no cluster. BaseModelError: see `load_base`.
    """
    with serving(config) as address:
        say(f"POST {address}/draw draws, GET {address}/subjects lists, GET {address}/health tells (Ctrl-C ends it)")
        threading.Event().wait()


@contextmanager
def serving(config: ServeConfig) -> Iterator[str]:
    """Serve for the block, which gets the address; see `serve_drawing`."""
    check(config)
    tokens = read_tokens(config)
    with cluster(config.ray, "serve") as ray:
        try:
            from ray import serve
        except ImportError as error:
            raise ServeError('serving needs Ray Serve; pip install "coeff-diffusion[serve]"') from error
        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        gpus = config.gpus_per_replica
        gpus = float(ray.cluster_resources().get("GPU", 0) > 0) if gpus is None else gpus
        with kept_handlers():
            host = EVERYWHERE if config.listen else HERE
            serve.start(proxy_location="HeadOnly", http_options={"host": host, "port": config.port})
        try:
            try:
                with kept_handlers():
                    serve.run(application(serve, config, tokens, gpus), name=NAME, route_prefix="/")
            except RuntimeError as error:
                raise ServeError(f"no replica can be started: {why_not(serve) or error}") from error
            yield f"http://{HERE}:{config.port}"
        finally:
            serve.delete(NAME)  # Ray Serve itself may be of others, too, and of this machine alone it ends with Ray


def application(serve: Any, config: ServeConfig, tokens: Sequence[str], gpus: float) -> Any:
    """The application for `serve.run`.

    Args:
        serve: the module `ray.serve`.
        gpus: of a replica.
    """

    @serve.deployment(
        name=DRAWER,
        num_replicas=config.replicas,
        ray_actor_options={"num_cpus": config.cpus_per_replica, "num_gpus": gpus},
        max_ongoing_requests=2 * config.pictures_at_once,  # one batch is drawn, the next one gathers
        max_queued_requests=config.max_queued,
        max_constructor_retry_count=TRIES,
    )
    class Drawer:
        """One base."""

        def __init__(self) -> None:
            self.batches = load_batches(config)

        @serve.batch(max_batch_size=config.pictures_at_once, batch_wait_timeout_s=config.batch_wait)
        async def draw(self, requests: list[DrawRequest]) -> list[Answer]:
            found = await asyncio.to_thread(self.batches.draw, requests)
            return [Answer.of(one) for one in found]

    @serve.deployment(name="Front", max_ongoing_requests=MANY, ray_actor_options={"num_cpus": 0})
    class Door:
        """What HTTP reaches."""

        def __init__(self, drawer: Any) -> None:
            from ray.serve.exceptions import BackPressureError

            async def draw(request: DrawRequest) -> Answer:
                try:
                    answer: Answer = await drawer.draw.remote(request)
                except BackPressureError as error:
                    raise OverloadedError from error
                return answer

            async def subjects() -> list[dict[str, Any]]:
                return await asyncio.to_thread(list_subjects, Library(config.subjects_dir))

            async def health() -> tuple[bool, dict[str, Any]]:
                return await asyncio.to_thread(health_of, serve)

            self.front = Front(draw, subjects, health, tokens)

        async def __call__(self, request: Any) -> Any:
            return await self.front(request)

    door, drawer = cast("Any", Door), cast("Any", Drawer)
    return door.bind(drawer.bind())


def load_batches(config: ServeConfig) -> SharedBatches:
    """What a replica draws with."""
    pipe = load_base(
        config.base,
        revision=config.revision,
        dtype=config.dtype,
        device=config.device,
        config=config.base_config,
        vae=config.pretrained_vae_model_name_or_path,
        quantization=config.quantization,
    )
    return SharedBatches(Studio(pipe), Library(config.subjects_dir), config.pictures_at_once)


def list_subjects(library: Library) -> list[dict[str, Any]]:
    """What is there, as the page's `/subjects` lists it; a file that is no subject says why."""
    found: list[dict[str, Any]] = []
    for name, path in library.find().items():
        try:
            info = open_subject(path).info
        except (CoefficientsError, OSError):
            found.append({"name": name, "problem": "its file cannot be read"})
            continue
        found.append({"name": name, "trigger": info.trigger, "class_word": info.class_word, "problem": ""})
    return found


def why_not(serve: Any) -> str:
    """What the replicas died of, in a line: the last one of the traceback that Ray Serve shows; empty if unknown."""
    ours = serve.status().applications.get(NAME)
    told = "" if ours is None or DRAWER not in ours.deployments else ours.deployments[DRAWER].message
    errors = re.findall(r"^(?:[\w.]+\.)?\w+(?:Error|Exception)\S*: (.+)$", told, re.MULTILINE)
    return errors[-1] if errors else " ".join(told.split())[-500:]


def health_of(serve: Any) -> tuple[bool, dict[str, Any]]:
    """Whether pictures can be drawn, and how many replicas there are by their state."""
    ours = serve.status().applications.get(NAME)
    drawer = None if ours is None else ours.deployments.get(DRAWER)
    if drawer is None:
        return False, {"status": "starting", "replicas": {}}
    replicas = {getattr(state, "value", str(state)): count for state, count in drawer.replica_states.items()}
    well = bool(replicas.get("RUNNING"))
    return well, {"status": "ok" if well else "no replica is ready", "replicas": replicas}
