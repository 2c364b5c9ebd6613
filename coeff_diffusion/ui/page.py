"""The page as a whole: its tabs, its looks and how it is served."""

import socket
from typing import Any

import gradio as gr
from gradio import routes
from starlette.middleware import Middleware

from ..service import Bases, StudioService
from . import (
    api,
    base_chooser,
    draw,
    explore,
    history,
    inspect,
    keys,
    library,
    notify,
    start,
    theme,
    timeline,
    train,
    train_pictures,
)
from .config import LOCALHOST, MAX_UPLOAD, PageConfig, PageError
from .guard import Guard, Names
from .own_folder import own_folder

QUEUE_LENGTH = 32  # drawings that may wait; one more gets "queue is full" at once
CACHE_SECONDS = 24 * 3600
TABS = {"Draw": draw, "Explore": explore, "Train": train, "Timeline": timeline, "Library": library, "Inspect": inspect}


def build(service: StudioService, bases: Bases | None = None) -> gr.Blocks:
    """The page around a service: one tab per file of this folder.

    Args:
        bases: those that can be drawn with, of which this service's is the current one.

    Raises:
        PageError: there is no place for temporary files, see `own_folder`.
    """
    # Components ask for their place when they are made; this one gradio took when it was imported, perhaps by others.
    routes.DEFAULT_TEMP_DIR = str(own_folder())
    bases = bases or Bases(service)
    page = _blocks(bases)
    page.queue(max_size=QUEUE_LENGTH, default_concurrency_limit=1)
    bases.show = lambda: exchange(page, _blocks(bases))
    return page


def _blocks(bases: Bases) -> gr.Blocks:
    """What stands on the page for the current base."""
    service = bases.current
    with gr.Blocks(title="coeff-diffusion", analytics_enabled=False, delete_cache=(3600, CACHE_SECONDS)) as page:
        base_chooser.build(bases)
        with gr.Tabs():
            for title, module in TABS.items():
                with gr.Tab(title, id=title) as tab:
                    module.build(service, page, tab)
        notify.build(page)
        api.build(bases)
    return page


def exchange(page: gr.Blocks, other: gr.Blocks) -> None:
    """Serve what stands on another page from now on, where this one is served: to every browser that opens it.

    Server, queue, looks and who may come in stay. Browsers that have it open keep the parts that they were given, as
    gradio has a copy of them for each; they see by its `app_id` that it is another page by now.
    """
    page.default_config, page.app_id = other.default_config, other.app_id
    page.temp_file_sets.extend(other.temp_file_sets)  # whose files may be asked for
    page.config = page.get_config_file()
    page.app.api_info = page.app.all_app_info = None  # what is remembered of the endpoints
    page.app.page_api_info.clear()


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
        "css": "".join(
            getattr(module, "CSS", "")
            for module in (theme, base_chooser, start, history, train_pictures, keys, *TABS.values())
        ),
        "head": keys.SCRIPT + base_chooser.SCRIPT + notify.SCRIPT,
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
