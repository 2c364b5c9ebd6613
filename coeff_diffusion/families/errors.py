"""What is wrong with a base."""

from ..subject.errors import UserError

CHOICES = "'embedded', a diffusers folder, a .safetensors checkpoint, or a Hub id like 'user/repository'"


class BaseModelError(UserError, ValueError):
    """A base cannot be loaded. The message is one line: what was tried, what was expected, what to do."""


def one_line(error: BaseException) -> str:
    """An error of a library as a part of a sentence."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {' '.join(lines)[:300]}" if lines else type(error).__name__
