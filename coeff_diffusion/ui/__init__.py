"""The page. It has no logic of its own: tabs call `StudioService`, which calls what the command line calls.

This module and `service` import no gradio, so the command line can show the page's flags without it.
"""

from .config import PageConfig, PageError, open_page
from .service import Drawing, StudioService

__all__ = ["Drawing", "PageConfig", "PageError", "StudioService", "open_page"]
