"""A subject in at most 2,953 bytes, what the largest QR code holds: every number in 8 bits, no paths, few words.

A whole subject for Stable Diffusion 1.x (32 layers of 8 heads and a token of 768 values) fits, compressible or not.
docs/qr.md describes the bytes. What is read comes from strangers: any damage is a `CoefficientsError`.
"""

import math
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ..subject.coefficients import MAX_MAGNITUDE, Coefficients
from ..subject.errors import CoefficientsError, cut, shown
from ..subject.info import CoefficientsInfo
from ..subject.places import text_encoder_of

if TYPE_CHECKING:
    from ..families.layout import Layout  # needs diffusers, and what has no QR code to read or write does not

CAPACITY = 2_953  # bytes of a QR code of version 40 at error level L
MAGIC = b"coEf"
VERSION = 1
HEADER = struct.Struct("<4sBB8s")  # magic, version, flags, start of the base's fingerprint
CHECKSUM = struct.Struct("<I")  # CRC-32 of all that stands before it
DEFLATED, ALWAYS, SOME_LAYERS, WITH_SAMPLE, FOR_EMBEDDED = 1, 2, 4, 8, 16  # flags
FLAGS = 32  # no flag is that high
MAX_BODY = 64 * 1024  # inflated
MAX_TEXT_BYTES = 255
SAMPLE = 8  # numbers of `CoefficientsInfo.base_sample` that are kept: every nth, as float16
EMBEDDED = "embedded"  # the base, as `CoefficientsInfo.base_model` calls it
INSTEAD = "put it into a picture instead, where it stays exact: coeff-diffusion card SUBJECT PICTURE -o OUT.png"


# --- numbers ----------------------------------------------------------------------------------------------------------


def quantize(values: Tensor) -> tuple[int, bytes]:
    """Numbers as 8-bit steps of one scale, so that none changes by more than 1/254 of the largest magnitude.

    The scale is a float32 that has neither sign nor its last 15 bits, the largest one that is not above that magnitude
    / 127. So half a step is at most 1/254 of it; and as a scale has 9 significant bits, 127 steps come within 1/254 of
    it, too. Steps times scale have 16 significant bits: the float32 of whoever reads them is exact.

    Returns:
        The scale's 16 bits and the int8 steps in row-major order. All zero where the scale would be below 2**-126, the
        smallest normal float32.
    """
    numbers = values.numpy().astype(np.float64)
    fraction, exponent = math.frexp(np.abs(numbers).max() / 127)  # 0.5 <= fraction < 1
    exponent += 126  # as float32 stores it
    if fraction == 0 or exponent < 1:
        return 0, bytes(numbers.size)
    bits = (exponent << 8) + math.floor(fraction * 512) - 256
    steps = np.rint(numbers / float(scale_of(bits))).clip(-127, 127)
    return bits, steps.astype(np.int8).tobytes()


def scale_of(bits: int) -> np.float32:
    """The scale that 16 bits stand for."""
    return np.uint32(bits << 15).view(np.float32)


def largest_change(subject: Coefficients, quantized: Coefficients) -> tuple[float, float]:
    """How far the numbers of a subject are from those of its quantized copy.

    Returns:
        The largest change of any number, and the largest in proportion to its tensor's largest magnitude.
    """
    changes, parts = [0.0], [0.0]
    others = quantized.named_tensors()
    for name, tensor in subject.named_tensors().items():
        changes.append(float((tensor.double() - others[name].double()).abs().max()))
        parts.append(changes[-1] / (float(tensor.abs().max()) or 1.0))
    return max(changes), max(parts)


# --- writing ----------------------------------------------------------------------------------------------------------


def pack(subject: Coefficients) -> bytes:
    """The content of a QR code.

    Of where a subject came from it keeps trigger, class word, name, gate, and which base it is for. Where that is too
    much, the name is cut at its end, down to nothing; then the sample of the base's weights is left out; then the class
    word. The trigger is never cut.

    Raises:
        CoefficientsError: the base is none of the known ones, the subject does not fit it, or it is too large. The
            message says what to do instead.
    """
    if len(subject.tokens) > 1:
        values = sum(tensor.numel() for tensor in subject.named_tensors().values())
        raise CoefficientsError(
            "the subject is too large for a QR code, which has room for the learned word of one text encoder: it has "
            f"those of {len(subject.tokens)}, and {values:,} values in all; {INSTEAD}"
        )
    if subject.stage_tokens:
        values = sum(token.numel() for token in subject.stage_tokens.values())
        raise CoefficientsError(
            f"the subject is too large for a QR code, which has no room for the {values} values that the stages of the "
            f"UNet read at its trigger; {INSTEAD}. Or train one that is made for a code: --no_stage_tokens"
        )
    if in_text := [path for path in subject if text_encoder_of(path)]:
        raise CoefficientsError(
            f"a QR code has no room for the heads of text encoders, and the subject recombines those of {len(in_text)} "
            f"layers; {INSTEAD}"
        )
    info, layout = subject.info, _layout_for(subject)
    there = [path in subject for path in layout.heads]
    layers = b"" if all(there) else _mask(there)
    token = subject.tokens.get("text_encoder")
    tensors = [subject[path] for path in layout.heads if path in subject] + ([] if token is None else [token])
    numbers = bytes([0 if token is None else len(token)]) + b"".join(map(_quantized, tensors))
    flags = ALWAYS * (info.gate == "always") + SOME_LAYERS * bool(layers) + FOR_EMBEDDED * (info.base_model == EMBEDDED)
    trigger = len(info.trigger.encode())
    if trigger > MAX_TEXT_BYTES:
        raise CoefficientsError(f"the trigger takes {trigger} bytes, a QR code keeps {MAX_TEXT_BYTES}; {INSTEAD}")
    for class_word, name, sample in _shorter(info):
        texts = [text.encode() for text in (info.trigger, class_word, name)]
        body = b"".join(bytes([len(text)]) + text for text in texts) + layers + _float16(sample) + numbers
        payload = _payload(flags + WITH_SAMPLE * bool(sample), layout, body)
        if len(payload) <= CAPACITY:
            return payload
    left = trigger - (len(payload) - CAPACITY)
    if left > 0:
        raise CoefficientsError(
            f"the trigger {shown(info.trigger)} takes {trigger} bytes, but in the QR code of this subject "
            f"{left} are left for it; {INSTEAD}"
        )
    values = sum(tensor.numel() for tensor in tensors)
    raise CoefficientsError(
        f"the subject is too large for a QR code: its {values} values take {len(payload)} bytes, {CAPACITY} fit; "
        + INSTEAD
    )


def _layout_for(subject: Coefficients) -> "Layout":
    from ..families.layout import KNOWN, known_layout

    info = subject.info
    layout = known_layout(info.base_fingerprint) if info.base_fingerprint else None
    if layout is None:
        base = f"{cut(info.base_model) or 'a base'} ({cut(info.base_architecture) or 'unknown family'})"
        lacking = "" if info.base_fingerprint else " and has no base_fingerprint, which says what layers that has"
        raise CoefficientsError(
            f"a QR code has no room for the names of layers, so the base must be one whose layers are known by heart "
            f"({', '.join(KNOWN)}), but this subject is for {base}{lacking}; {INSTEAD}"
        )
    layout.check_fits(subject)
    if info.adapter:
        raise CoefficientsError(f"a QR code has no room for the subject's adapter ({info.adapter}); share its folder")
    return layout


def _shorter(info: CoefficientsInfo) -> Iterator[tuple[str, str, tuple[float, ...]]]:
    """Class word, name and sample to keep: all that a code can hold, then less and less."""
    class_word = info.class_word if len(info.class_word.encode()) <= MAX_TEXT_BYTES else ""
    name = info.name.encode()[:MAX_TEXT_BYTES].decode(errors="ignore")
    sample = _every_nth(info.base_sample)
    yield class_word, name, sample
    yield from ((class_word, name[:length].rstrip(), sample) for length in reversed(range(len(name))))
    yield class_word, "", ()
    yield "", "", ()


def _every_nth(sample: tuple[float, ...]) -> tuple[float, ...]:
    """As many numbers of a sample of weights as are kept; none if it is no multiple of them, or not of weights."""
    kept = sample[:: max(1, len(sample) // SAMPLE)]
    return kept if len(kept) == SAMPLE and max(map(abs, kept)) <= MAX_MAGNITUDE else ()


def _payload(flags: int, layout: "Layout", body: bytes) -> bytes:
    compressor = zlib.compressobj(9, wbits=-zlib.MAX_WBITS)
    deflated = compressor.compress(body) + compressor.flush()
    if len(deflated) < len(body):
        flags, body = flags + DEFLATED, deflated
    content = HEADER.pack(MAGIC, VERSION, flags, bytes.fromhex(layout.fingerprint)[:8]) + body
    return content + CHECKSUM.pack(zlib.crc32(content))


def _quantized(values: Tensor) -> bytes:
    bits, steps = quantize(values)
    return bits.to_bytes(2, "little") + steps


def _float16(values: tuple[float, ...]) -> bytes:
    return np.array(values, "<f2").tobytes()


def _mask(bits: list[bool]) -> bytes:
    """One bit each, the first the lowest of the first byte."""
    return np.packbits(bits, bitorder="little").tobytes()


# --- reading ----------------------------------------------------------------------------------------------------------


def unpack(data: bytes) -> Coefficients:
    """The inverse of `pack`, up to the rounding, which `info.extra["quantized"]` states.

    Raises:
        CoefficientsError: it is no payload of a subject, damaged, of a newer version, or for a base that is not known.
    """
    from ..families.layout import KNOWN, known_layout

    if not data.startswith(MAGIC):
        raise CoefficientsError("not a subject: its first bytes are others")
    if not HEADER.size + CHECKSUM.size <= len(data) <= CAPACITY:
        raise CoefficientsError(f"damaged: it has {len(data)} bytes")
    _, version, flags, start = HEADER.unpack_from(data)
    if version != VERSION or flags >= FLAGS:
        raise CoefficientsError(
            f"a QR code of version {version} with flags {flags:#x}, but this program reads version {VERSION} with "
            f"flags below {FLAGS:#x}; a newer coeff-diffusion may read it"
        )
    content, (checksum,) = data[: -CHECKSUM.size], CHECKSUM.unpack(data[-CHECKSUM.size :])
    if zlib.crc32(content) != checksum:
        raise CoefficientsError("damaged: its checksum does not agree")
    layout = known_layout(start.hex())
    if layout is None:
        raise CoefficientsError(
            f"the subject is for a base with the fingerprint {start.hex()}..., none of those that this version knows "
            f"by heart: {', '.join(KNOWN)}; ask for the subject's file"
        )
    body = content[HEADER.size :]
    return _subject(_Body(_inflated(body) if flags & DEFLATED else body), flags, layout)


def _inflated(data: bytes) -> bytes:
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        body = inflater.decompress(data, MAX_BODY)
    except zlib.error as error:
        raise CoefficientsError(f"damaged: {error}") from error
    if not inflater.eof or inflater.unused_data:
        raise CoefficientsError("damaged: its compressed part does not end where it should")
    return body


def _subject(body: "_Body", flags: int, layout: "Layout") -> Coefficients:
    trigger, class_word, name = body.text(), body.text(), body.text()
    there = body.mask(len(layout.heads)) if flags & SOME_LAYERS else [True] * len(layout.heads)
    sample = np.frombuffer(body.take(2 * SAMPLE), "<f2").tolist() if flags & WITH_SAMPLE else []
    vectors = body.take(1)[0]
    heads = {path: count for (path, count), kept in zip(layout.heads.items(), there, strict=True) if kept}
    coeffs = {path: body.numbers(count * count).view(count, count) for path, count in heads.items()}
    width = layout.widths["text_encoder"]
    tokens = {"text_encoder": body.numbers(vectors * width).view(vectors, width)} if vectors else {}
    if body.data:
        raise CoefficientsError(f"damaged: {len(body.data)} bytes are left over")
    info = CoefficientsInfo(
        name=name,
        trigger=trigger,
        class_word=class_word,
        base_model=EMBEDDED if flags & FOR_EMBEDDED else "",
        base_architecture=layout.architecture,
        base_fingerprint=layout.fingerprint,
        base_sample=tuple(sample),
        blocks=tuple(heads) if flags & SOME_LAYERS else (),
        gate="always" if flags & ALWAYS else "trigger",
        extra={"quantized": {"bits": 8, "largest_error": max(body.scales, default=0.0) / 2}},
    )
    return Coefficients(coeffs, tokens, info)


@dataclass
class _Body:
    """What is left to read, and the scales that were read.

    Raises (all methods):
        CoefficientsError: it is too short, or holds what no writer puts there.
    """

    data: bytes
    scales: list[float] = field(default_factory=list)

    def take(self, count: int) -> bytes:
        if len(self.data) < count:
            raise CoefficientsError(f"damaged: {count} bytes are expected where {len(self.data)} are left")
        taken, self.data = self.data[:count], self.data[count:]
        return taken

    def text(self) -> str:
        data = self.take(self.take(1)[0])
        try:
            return data.decode()
        except UnicodeDecodeError as error:
            raise CoefficientsError(f"damaged: {shown(data)} is no UTF-8 text") from error

    def mask(self, count: int) -> list[bool]:
        bits = np.unpackbits(np.frombuffer(self.take(-(-count // 8)), np.uint8), bitorder="little").astype(bool)
        if bits[count:].any():
            raise CoefficientsError(f"damaged: it names more layers than the {count} of its base")
        return bits[:count].tolist()

    def numbers(self, count: int) -> Tensor:
        """A scale and as many values, `[count]` float32."""
        scale = scale_of(int.from_bytes(self.take(2), "little"))
        if not scale <= MAX_MAGNITUDE / 127:
            raise CoefficientsError(f"damaged: a scale is {scale:g}, expected at most {MAX_MAGNITUDE / 127:g}")
        self.scales.append(float(scale))
        return torch.from_numpy(np.frombuffer(self.take(count), np.int8).astype(np.float32) * scale)
