"""One seed for each random choice, so that every step depends on its number alone."""

import hashlib


def mixed_seed(*parts: int) -> int:
    """One seed out of several numbers, such as (seed, step): different parts, unrelated seeds."""
    digest = hashlib.sha256(",".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1  # a generator takes 63 bits
