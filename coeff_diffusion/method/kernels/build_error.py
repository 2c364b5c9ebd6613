"""What goes wrong where kernels of our own are compiled; attention then takes another way."""


class BuildError(Exception):
    """A kernel could not be compiled or loaded; the message is one line."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))
