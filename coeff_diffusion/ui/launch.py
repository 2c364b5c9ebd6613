"""Open the page: load the base, put the services behind it, serve it."""

import os
import signal
import threading
from types import FrameType

from ..families.load import load_base
from ..images.files import check_folder
from ..inference.studio import Studio
from ..service import StudioService
from ..sources.library import Library
from .config import PageConfig, PageError, check
from .own_folder import own_folder


def open_page(config: PageConfig, block: bool = True) -> str:
    """Load the base, open the page, and stay until Ctrl-C, or until the system ends the process or its terminal.

    Args:
        block: False returns at once with the page running in a thread (for tests and notebooks).

    Returns:
        The page's address.

    Raises:
        PageError: see `check` and `own_folder`; gradio missing; the port taken. BaseModelError: see `load_base`.
    """
    users = check(config)
    if block:
        _end_as_by_ctrl_c(signal.SIGTERM, signal.SIGHUP)
    own_folder()
    # Read when gradio is imported: nothing leaves the machine, no table of all events is made after each, and no prompt
    # or picture stays in the browser.
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["GRADIO_RUN_HISTORY"] = "False"
    os.environ.setdefault("GRADIO_ANALYTICS_CACHE_FREQUENCY", "1000000")
    try:
        from .page import build, launch
    except ModuleNotFoundError as error:
        raise PageError(f'the page needs {error.name}; pip install "coeff-diffusion[ui]"') from error
    output_dir = check_folder(config.output_dir)
    pipe = load_base(
        config.base, revision=config.revision, dtype=config.dtype, device=config.device, config=config.base_config
    )
    service = StudioService(Studio(pipe), Library(config.subjects_dir), output_dir)
    # Who reaches the page from outside names no folders of this computer.
    service.import_export.folders = not (config.listen or config.share)
    try:
        return launch(build(service), config, users, block)
    finally:
        if block:  # Ctrl-C: what is being trained is saved
            service.close()


def _end_as_by_ctrl_c(*signals: signal.Signals) -> None:
    """Let these signals end the page in order. One that is ignored, as `nohup` has it, stays so."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is threading.main_thread():
        for one in signals:
            if signal.getsignal(one) is signal.SIG_DFL:
                signal.signal(one, stop)
