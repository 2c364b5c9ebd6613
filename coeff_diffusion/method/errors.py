"""What is wrong between coefficients and a network."""

from ..subject.errors import CoefficientsError


class AttachmentError(CoefficientsError):
    """A network cannot be recombined as asked, or something has taken the recombination out of it."""
