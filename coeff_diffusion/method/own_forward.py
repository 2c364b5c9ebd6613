"""How `torch.compile` is made to notice hooks that come after it has compiled a module."""

from torch import nn


def give_own_forward(module: nn.Module) -> None:
    """Let `torch.compile` notice the hooks of a module that it has compiled already.

    It does not look for hooks again, but for a forward of the module's own; this one is what the module had.
    """
    vars(module).setdefault("forward", module.forward)


def take_own_forward(module: nn.Module) -> None:
    """Undo `give_own_forward`."""
    if vars(module).get("forward") == type(module).forward.__get__(module):  # else it is somebody else's
        del module.forward
