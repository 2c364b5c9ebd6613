"""Where a command may write its file."""

import os
from pathlib import Path

from ..subject.errors import UserError
from ..subject.user_file import user_path


class OutputError(UserError, ValueError):
    """A file cannot go where it is asked for."""


def check_output(output: str | Path, suffix: str, overwrite: bool, make_folder: bool = False) -> Path:
    """The file that is to be written, before anything is read or drawn.

    Args:
        suffix: what its name has to end in (".png").
        overwrite: it may be there already.
        make_folder: whoever writes it makes its folder, too.

    Raises:
        OutputError: its name ends in something else, it is there and may not be replaced, or its folder is missing.
    """
    path = user_path(output)
    if path.suffix.lower() != suffix:
        raise OutputError(f"{path} does not end in {suffix}; give a name that does")
    if path.is_dir():
        raise OutputError(f"{path} is a folder; give the name of a file")
    if not make_folder and not path.parent.is_dir():
        raise OutputError(f"there is no folder {path.parent} to write {path.name} to")
    if os.path.lexists(path) and not overwrite:  # a link that leads nowhere is something, too
        raise OutputError(f"{path} exists; give another name, or --overwrite to replace it")
    return path
