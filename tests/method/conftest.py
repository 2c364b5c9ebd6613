import inspect
from collections.abc import Iterator

import pytest
import torch
from torch._dynamo.utils import counters

from coeff_diffusion.method import override


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """`torch.compile` with nothing compiled yet, which cannot look through the shape checks that the tests put in."""
    for name in ("recombined_attention", "scaled_attention"):
        monkeypatch.setattr(override, name, inspect.unwrap(getattr(override, name)))
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()
