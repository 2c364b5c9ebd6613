"""The page as a whole: its tabs, its looks and how it is served."""

import socket
from typing import Any

import gradio as gr
from gradio import routes
from starlette.middleware import Middleware

from ..service import StudioService
from . import api, draw, explore, history, inspect, keys, library, start, theme, timeline, train
from .config import LOCALHOST, MAX_UPLOAD, PageConfig, PageError
from .guard import Guard, Names
from .own_folder import own_folder

QUEUE_LENGTH = 32  # drawings that may wait; one more gets "queue is full" at once
CACHE_SECONDS = 24 * 3600
TABS = {"Draw": draw, "Explore": explore, "Train": train, "Timeline": timeline, "Library": library, "Inspect": inspect}


def build(service: StudioService) -> gr.Blocks:
    """The page around a service: one tab per file of this folder.

    Raises:
        PageError: there is no place for temporary files, see `own_folder`.
    """
    # Components ask for their place when they are made; this one gradio took when it was imported, perhaps by others.
    routes.DEFAULT_TEMP_DIR = str(own_folder())
    with gr.Blocks(title="coeff-diffusion", analytics_enabled=False, delete_cache=(3600, CACHE_SECONDS)) as page:
        gr.Markdown(f"# coeff-diffusion\nDrawing on the base *{service.studio.base}*.", elem_id="page-head")
        with gr.Tabs():
            for title, module in TABS.items():
                with gr.Tab(title, id=title) as tab:
                    module.build(service, page, tab)
        api.build(service)
    page.queue(max_size=QUEUE_LENGTH, default_concurrency_limit=1)
    return page


def launch(page: gr.Blocks, config: PageConfig, users: list[tuple[str, str]], block: bool) -> str:
    """Serve the page and return its address (see `launch.open_page`)."""
    options: dict[str, Any] = {
        "server_name": "0.0.0.0" if config.listen else LOCALHOST,
        "share": config.share,
        "auth": users or None,
        "inbrowser": config.open_browser,
        "max_file_size": MAX_UPLOAD,
        "allowed_paths": [],  # the page serves its own folder and nothing else
        "app_kwargs": {"middleware": [Middleware(Guard, folder=own_folder(), names=names_of(config))]},
        "theme": theme.THEME,
        "css": "".join(getattr(module, "CSS", "") for module in (theme, start, history, keys, *TABS.values())),
        "head": keys.SCRIPT,
        "footer_links": [],
        "ssr_mode": False,
        "pwa": False,
        "enable_monitoring": False,
        "quiet": True,
        "show_error": True,
    }
    options["server_port"] = _free_port(str(options["server_name"]), config.port)
    _, local, public = page.launch(prevent_thread_lock=True, **options)
    address = public or local
    print(f"The page is at {address} (Ctrl-C closes it)", flush=True)
    if block:
        page.block_thread()
    return address


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
