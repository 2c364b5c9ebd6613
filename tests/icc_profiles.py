"""ICC profiles made by hand: what cameras, phones and print shops put into pictures."""

import struct
from collections.abc import Mapping

D50 = (0.9642, 1.0, 0.8249)
# Red, green and blue of each space as XYZ at D50.
DISPLAY_P3 = ((0.51512, 0.24120, -0.00105), (0.29198, 0.69225, 0.04189), (0.15710, 0.06657, 0.78407))
ADOBE_RGB = ((0.60974, 0.31111, 0.01947), (0.20528, 0.62567, 0.06087), (0.14919, 0.06322, 0.74457))


def rgb_profile(primaries: tuple[tuple[float, float, float], ...], gamma: float) -> bytes:
    """A space of three primaries and one gamma."""
    tags = {name: _xyz(value) for name, value in zip(("rXYZ", "gXYZ", "bXYZ"), primaries, strict=True)}
    return _profile("RGB ", "XYZ ", {**tags, **dict.fromkeys(("rTRC", "gTRC", "bTRC"), _gamma(gamma))})


def grey_profile(gamma: float) -> bytes:
    return _profile("GRAY", "XYZ ", {"kTRC": _gamma(gamma)})


def cmyk_profile(white: int = 255, ink: int = 40) -> bytes:
    """A press with grey inks alone: no ink is as light as `white`, any full ink as `ink` (Lab L, of 255)."""
    head = b"mft1" + bytes(4) + bytes([4, 3, 2, 0])
    matrix = b"".join(_fixed(value) for value in (1, 0, 0, 0, 1, 0, 0, 0, 1))
    ramp = bytes(range(256))
    grid = bytes(value for inks in range(16) for value in (white if inks == 0 else ink, 128, 128))
    table = head + matrix + ramp * 4 + grid + ramp * 3
    return _profile("CMYK", "Lab ", {"A2B0": table, "A2B1": table}, kind="prtr")


def _profile(space: str, connection: str, tags: Mapping[str, bytes], kind: str = "mntr") -> bytes:
    text = b"test"
    described = b"desc" + bytes(4) + struct.pack(">I", len(text) + 1) + text + bytes(1 + 4 + 4 + 2 + 1 + 67)
    everything = {"desc": described, "wtpt": _xyz(D50), "cprt": b"text" + bytes(4) + b"none\0", **tags}
    table, data = struct.pack(">I", len(everything)), b""
    start = 128 + 4 + 12 * len(everything)
    for name, content in everything.items():
        table += name.encode() + struct.pack(">II", start + len(data), len(content))
        data += content + bytes(-len(content) % 4)
    size = start + len(data)
    header = struct.pack(">I", size) + bytes(4) + b"\x02\x10\0\0" + kind.encode() + space.encode() + connection.encode()
    header += struct.pack(">6H", 2020, 1, 1, 0, 0, 0) + b"acsp" + bytes(28) + b"".join(map(_fixed, D50))
    return header + bytes(128 - len(header)) + table + data


def _fixed(value: float) -> bytes:
    return struct.pack(">i", round(value * 65536))


def _xyz(value: tuple[float, float, float]) -> bytes:
    return b"XYZ " + bytes(4) + b"".join(map(_fixed, value))


def _gamma(value: float) -> bytes:
    return b"curv" + bytes(4) + struct.pack(">IH", 1, round(value * 256))
