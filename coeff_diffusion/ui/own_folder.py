"""The page's own temporary folder: what is uploaded, shown and downloaded lies there.

Gradio's default is one folder that all users of a machine share: whoever came first owns it, and nobody else can open a
page.
"""

import os
import tempfile
from functools import cache
from pathlib import Path

from ..subject.private_folder import private_folder
from .config import PageError

VARIABLE = "GRADIO_TEMP_DIR"  # gradio looks there each time it needs the place
NAME = "coeff-diffusion-page-"


@cache
def own_folder() -> Path:
    """Make the folder of this process (see `private_folder`), which gradio uses from now on.

    It is made where `GRADIO_TEMP_DIR` says, or else where the system has its temporary files.

    Raises:
        PageError: it cannot be made, or not be written to.
    """
    chosen = os.environ.get(VARIABLE, "")
    try:
        chosen = chosen or tempfile.gettempdir()
        folder = private_folder(Path(chosen).expanduser().resolve(), NAME)
    except OSError as error:
        raise PageError(
            f"the page cannot keep its temporary files in {chosen or 'any usual place'}: {error.strerror or error}; "
            f"set {VARIABLE} to a folder that you may write to and that has room"
        ) from error
    os.environ[VARIABLE] = str(folder)
    return folder
