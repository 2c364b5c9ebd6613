"""Open the page: serve it at once, load the base, put the services behind it."""

import sys
from typing import Any

from ..training.signals import ending_once
from .config import PageConfig, PageError, check
from .own_folder import own_folder
from .quick_gradio import import_gradio


def open_page(config: PageConfig, block: bool = True) -> str:
    """Open the page, load the base, and stay until Ctrl-C, SIGTERM or SIGHUP.

    What is heavy is imported here, after the settings are known to be right. The page is served before the base is
    there: until then it says what it waits for, and then it loads again by itself.

    Args:
        block: False returns with the page running in a thread, once it can be used (for tests and notebooks).

    Returns:
        The page's address.

    Raises:
        PageError: see `check` and `own_folder`; gradio missing; the port taken. BaseModelError: see `load_base`.
    """
    users = check(config)
    own_folder()
    _progress("loading the libraries of the page")
    try:
        import_gradio()
        from .server import blocks, serve
        from .waiting import Waiting
    except ModuleNotFoundError as error:
        raise PageError(f'the page needs {error.name}; pip install "coeff-diffusion[ui]"') from error
    waiting = Waiting()
    with blocks() as page:
        pass  # what stands on it needs the base
    address = serve(page, config, users, waiting)
    try:
        bases = _loaded(config, waiting, address)
        from .page import fill

        fill(page, bases)
        waiting.over = True
        print(f"The page is at {address} (Ctrl-C closes it)", flush=True)
    except BaseException:
        page.close(verbose=False)
        raise
    if block:
        _stay(page, bases)
    return address


def _stay(page: Any, bases: Any) -> None:
    """Until Ctrl-C, SIGTERM or SIGHUP; what is being trained then is saved."""
    from ..training.reports import unbroken

    with ending_once(unbroken(print)):
        try:
            page.block_thread()
        finally:
            bases.current.close()


def _loaded(config: PageConfig, waiting: Any, address: str) -> Any:
    """The base and all that is done with it."""
    _progress(f"loading the base {config.base!r} for the page at {address}")
    waiting.doing = "Loading the libraries that draw ..."
    from ..families.load import load_base
    from ..images.files import check_folder
    from ..inference.studio import Studio
    from ..inference.templates import check_templates
    from ..service import Bases, StudioService
    from ..service.caption_writer import CaptionWriter
    from ..sources.library import Library

    output_dir = check_folder(config.output_dir)
    templates = check_templates(config.styles_dir)
    waiting.doing = "Loading the base, which takes seconds to minutes ..."
    options: dict[str, Any] = {
        "revision": config.revision,
        "dtype": config.dtype,
        "device": config.device,
        "config": config.base_config,
        "vae": config.pretrained_vae_model_name_or_path,
        "quantization": config.quantization,
    }
    service = StudioService(Studio(load_base(config.base, **options)), Library(config.subjects_dir), output_dir)
    service.drawings.templates = templates
    service.caption_writer = CaptionWriter(config.caption_model, service.studio.pipe.device)
    # Who reaches the page from outside names no folders of this computer, and fills no disk.
    service.import_export.folders = service.drawings.folders = not (config.listen or config.share)
    bases = Bases(service, config.base, options, anyone=service.import_export.folders)
    bases.remember()
    return bases


def _progress(what: str) -> None:
    """Say why nothing is to be seen yet; not on stdout, whose first line is the address."""
    print(f"coeff-diffusion: {what} ...", file=sys.stderr, flush=True)
