"""Import gradio: in half the time, and so that nothing that is done on the page leaves the machine or stays behind."""

import os
import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from importlib.util import spec_from_loader
from types import ModuleType
from typing import Any

META = "gradio.component_meta"


def import_gradio() -> None:
    """Import gradio, for the first time in this process.

    Raises:
        ModuleNotFoundError: it is not installed.
    """
    # Read when gradio is imported: nothing leaves the machine, no table of all events is made after each, and no prompt
    # or picture stays in the browser.
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["GRADIO_RUN_HISTORY"] = "False"
    os.environ.setdefault("GRADIO_ANALYTICS_CACHE_FREQUENCY", "1000000")
    finder = _WithoutStubs()
    sys.meta_path.insert(0, finder)
    try:
        import gradio  # noqa: F401 - whoever imports it now has it at once
    finally:
        sys.meta_path.remove(finder)


class _WithoutStubs(MetaPathFinder):
    """Leaves out what gradio does for editors alone: as each of its components is imported, it parses the component's
    source and the stub (`.pyi`) beside it, and writes that anew. That is half of the 3 s that its import takes, and a
    file that two processes may write at once.
    """

    def find_spec(self, fullname: str, path: Any, target: ModuleType | None = None) -> ModuleSpec | None:
        found = PathFinder.find_spec(fullname, path) if fullname == META else None
        return found and spec_from_loader(fullname, _Loader(fullname, str(found.origin)))


class _Loader(SourceFileLoader):
    def exec_module(self, module: ModuleType) -> None:
        super().exec_module(module)
        vars(module)["create_or_modify_pyi"] = lambda *_: None
