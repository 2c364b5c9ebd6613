"""The page. It has no logic of its own: tabs call `service.StudioService`, which calls what the command line calls.

This module imports no gradio, so the command line can show the page's flags without it.
"""

from .config import PageConfig, PageError
from .launch import open_page

__all__ = ["PageConfig", "PageError", "open_page"]
