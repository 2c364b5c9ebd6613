"""What kinds of adapters can learn with a subject, and how people write them; see `adapter`."""

import re
from typing import NamedTuple

from .errors import CoefficientsError, shown

METHODS = ("lora", "dora")
MAX_RANK = 64
WRITTEN = re.compile(rf"({'|'.join(METHODS)}):(\d{{1,4}})", re.ASCII)


class AdapterKind(NamedTuple):
    """What kind of adapter it is, as people write it: `lora:4`."""

    method: str
    rank: int

    def __str__(self) -> str:
        return f"{self.method}:{self.rank}"

    @classmethod
    def parse(cls, text: str) -> "AdapterKind":
        """Read `lora:4` or `dora:4`.

        Raises:
            CoefficientsError: it is neither, or the rank is out of bounds.
        """
        found = WRITTEN.fullmatch(text)
        if found is None or not 1 <= int(found[2]) <= MAX_RANK:
            raise CoefficientsError(
                f"the adapter {shown(text)} is not known; expected lora:RANK or dora:RANK with a rank of 1 to "
                f"{MAX_RANK}, such as lora:4: the kinds that diffusers loads (no LoHa, LoKr or IA3)"
            )
        return cls(found[1], int(found[2]))
