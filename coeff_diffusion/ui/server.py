"""Serve a page: to whom, on which port, and by which names. Needs gradio, and nothing of what draws."""

import socket
from typing import Any

import gradio as gr
from starlette.middleware import Middleware

from .config import LOCALHOST, MAX_UPLOAD, PageConfig, PageError
from .guard import Guard, Names
from .own_folder import own_folder
from .sessions import Sessions
from .theme import THEME
from .waiting import Wait, Waiting

QUEUE_LENGTH = 32  # drawings that may wait; one more gets "queue is full" at once
CACHE_SECONDS = 24 * 3600


def blocks() -> gr.Blocks:
    """A page with nothing on it yet."""
    return gr.Blocks(title="coeff-diffusion", analytics_enabled=False, delete_cache=(3600, CACHE_SECONDS))


def serve(page: gr.Blocks, config: PageConfig, users: list[tuple[str, str]], waiting: Waiting | None = None) -> str:
    """Serve a page, in a thread.

    Args:
        waiting: answers in the page's place until it is over.

    Returns:
        The page's address.

    Raises:
        PageError: the port is taken.
    """
    in_front = [
        Middleware(Guard, folder=own_folder(), names=names_of(config)),
        Middleware(Wait, waiting=waiting or Waiting(over=True)),
    ]
    page.queue(max_size=QUEUE_LENGTH, default_concurrency_limit=1)
    host = "0.0.0.0" if config.listen else LOCALHOST
    options: dict[str, Any] = {
        "server_name": host,
        "server_port": _free_port(host, config.port),
        "share": config.share,
        "auth": users or None,
        "inbrowser": config.open_browser,
        "max_file_size": MAX_UPLOAD,
        "allowed_paths": [],  # the page serves its own folder and nothing else
        "app_kwargs": {"middleware": in_front},
        "theme": THEME,
        "css": page.css,
        "head": page.head,
        "footer_links": [],
        "ssr_mode": False,
        "pwa": False,
        "enable_monitoring": False,
        "quiet": True,
        "show_error": True,
    }
    _, local, public = page.launch(prevent_thread_lock=True, **options)
    app: Any = page.app
    app.tokens = Sessions(3600 * config.session_hours)  # gradio declares a dict and asks no more of it than a mapping
    return str(public or local)


def names_of(config: PageConfig) -> Names:
    """What the page may be asked for as."""
    others = [name.strip().lower() for name in config.host_names.split(",") if name.strip()]
    return Names(config.listen, config.share, others)


def _free_port(host: str, port: int) -> int:
    """The port, or for 0 any free one. A taken one is said in one line.

    Gradio would look for a free one itself, in a range of a hundred, and leave the sockets it tried open.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise PageError(f"port {port} cannot be used ({error.strerror}); give another --port, or 0") from error
        return int(probe.getsockname()[1])
