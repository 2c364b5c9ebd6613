"""The page as a whole: its tabs and its looks."""

from typing import Any

import gradio as gr
from gradio import routes

from ..service import Bases, StudioService
from . import (
    api,
    base_chooser,
    draw,
    drops,
    explore,
    history,
    inspect,
    keys,
    library,
    notify,
    paint,
    prompt_box,
    proxied,
    sessions,
    start,
    theme,
    timeline,
    train,
    train_pictures,
    train_previews,
)
from .own_folder import own_folder
from .server import blocks

TABS = {"Draw": draw, "Explore": explore, "Train": train, "Timeline": timeline, "Library": library, "Inspect": inspect}
CSS = "".join(
    getattr(module, "CSS", "")
    for module in (
        theme,
        base_chooser,
        start,
        history,
        train_pictures,
        train_previews,
        keys,
        sessions,
        proxied,
        *TABS.values(),
    )
)
HEAD = "".join(module.SCRIPT for module in (keys, base_chooser, notify, paint, drops, prompt_box, sessions, proxied))


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
    bases.show = lambda: exchange(page, _blocks(bases))
    return page


def fill(page: gr.Blocks, bases: Bases) -> None:
    """Put all that stands on the page into one that is served already, with nothing on it.

    Raises:
        PageError: see `build`.
    """
    routes.DEFAULT_TEMP_DIR = str(own_folder())
    _dress(page)
    bases.show = lambda: exchange(page, _blocks(bases))
    bases.show()


def _blocks(bases: Bases) -> gr.Blocks:
    """What stands on the page for the current base."""
    service = bases.current
    with blocks() as page:
        base_chooser.build(bases)
        with gr.Tabs():
            for title, module in TABS.items():
                with gr.Tab(title, id=title) as tab:
                    module.build(service, page, tab)
        notify.build(page)
        api.build(bases)
    _dress(page)
    return page


def _dress(page: Any) -> None:
    page.css, page.head = CSS, HEAD


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
