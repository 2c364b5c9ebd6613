"""What is wrong with a picture that was drawn."""

from ..subject.errors import UserError


class PictureError(UserError, ValueError):
    """A picture cannot be read or written, or carries no parameters."""
