"""Open the page: load the base, put the services behind it, serve it."""

import os
import sys
from contextlib import nullcontext
from typing import Any

from ..training.signals import ending_once
from .config import PageConfig, PageError, check
from .own_folder import own_folder


def open_page(config: PageConfig, block: bool = True) -> str:
    """Load the base, open the page, and stay until Ctrl-C, SIGTERM or SIGHUP.

    What is heavy is imported here, after the settings are known to be right and with a word that it takes seconds.

    Args:
        block: False returns at once with the page running in a thread (for tests and notebooks).

    Returns:
        The page's address.

    Raises:
        PageError: see `check` and `own_folder`; gradio missing; the port taken. BaseModelError: see `load_base`.
    """
    users = check(config)
    own_folder()
    _progress("loading the libraries of the page")
    # Read when gradio is imported: nothing leaves the machine, no table of all events is made after each, and no prompt
    # or picture stays in the browser.
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["GRADIO_RUN_HISTORY"] = "False"
    os.environ.setdefault("GRADIO_ANALYTICS_CACHE_FREQUENCY", "1000000")
    try:
        from ..families.load import load_base
        from ..images.files import check_folder
        from ..inference.studio import Studio
        from ..inference.templates import check_templates
        from ..service import Bases, StudioService
        from ..sources.library import Library
        from ..training.reports import unbroken
        from .page import build, launch
    except ModuleNotFoundError as error:
        raise PageError(f'the page needs {error.name}; pip install "coeff-diffusion[ui]"') from error
    output_dir = check_folder(config.output_dir)
    _progress(f"loading the base {config.base!r}")
    options: dict[str, Any] = {
        "revision": config.revision,
        "dtype": config.dtype,
        "device": config.device,
        "config": config.base_config,
        "vae": config.pretrained_vae_model_name_or_path,
        "quantization": config.quantization,
    }
    templates = check_templates(config.styles_dir)
    service = StudioService(Studio(load_base(config.base, **options)), Library(config.subjects_dir), output_dir)
    service.drawings.templates = templates
    # Who reaches the page from outside names no folders of this computer, and fills no disk.
    service.import_export.folders = service.drawings.folders = not (config.listen or config.share)
    bases = Bases(service, config.base, options, anyone=service.import_export.folders)
    bases.remember()
    with ending_once(unbroken(print)) if block else nullcontext():
        try:
            return launch(build(service, bases), config, users, block)
        finally:
            if block:  # Ctrl-C, SIGTERM or SIGHUP: what is being trained is saved
                bases.current.close()


def _progress(what: str) -> None:
    """Say why nothing is to be seen yet; not on stdout, whose first line is the address."""
    print(f"coeff-diffusion: {what} ...", file=sys.stderr, flush=True)
