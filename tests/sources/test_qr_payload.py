"""The content of a QR code: it fits, it keeps what it says, and damage is never anything but an error."""

import re
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from hypothesis import given, settings
from hypothesis import strategies as st

from coeff_diffusion import Coefficients, CoefficientsError, CoefficientsInfo
from coeff_diffusion.base import embedded_path
from coeff_diffusion.families.fingerprint import check_fits, same_weights, weight_sample
from coeff_diffusion.families.layout import KNOWN, Layout, _known
from coeff_diffusion.method.attachment import CoeffConfig, layer_heads
from coeff_diffusion.sources.qr_payload import (
    CAPACITY,
    DEFLATED,
    FOR_EMBEDDED,
    MAX_BODY,
    SOME_LAYERS,
    WITH_SAMPLE,
    largest_change,
    pack,
    quantize,
    scale_of,
    unpack,
)

MOST = 1 / 254
ROOT = Path(__file__).parents[2]
SMALLEST_SCALE = 2.0**-126


def known(name: str) -> Layout:
    found = _known(name)
    assert found is not None
    return found


EMBEDDED, SD1, SD2 = (known(name) for name in KNOWN)
SAMPLE = tuple(float(f"{value:.6g}") for value in np.random.default_rng(0).normal(0, 0.1, 24))


def new_subject(topology: Layout, vectors: int = 1, seed: int = 0, only: Any = None, **info: Any) -> Coefficients:
    """A whole subject that no compressor makes smaller: every step from -127 to 127 is equally likely."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> torch.Tensor:
        largest = 0.02 + torch.rand(1, generator=generator) / 5
        return (torch.rand(shape, generator=generator) * 2 - 1) * largest

    known = {"name": "my dog", "trigger": "sks dog", "class_word": "dog", "base_sample": SAMPLE}
    return Coefficients(
        {path: random(heads, heads) for path, heads in topology.heads.items() if only is None or path in only},
        {"text_encoder": random(vectors, topology.widths["text_encoder"])} if vectors else {},
        CoefficientsInfo(**{**known, "base_fingerprint": topology.fingerprint, **info}),
    )


def sealed(content: bytes) -> bytes:
    """With the checksum that belongs to it."""
    return content + zlib.crc32(content).to_bytes(4, "little")


def plain_body(subject: Coefficients) -> bytes:
    data = pack(subject)
    assert not data[5] & DEFLATED
    return data[14:-4]


# --- numbers ----------------------------------------------------------------------------------------------------------


def assert_close(values: list[float]) -> None:
    """No change above 1/254 of the largest magnitude, without any tolerance: all of this is exact in float64."""
    tensor = torch.tensor(values, dtype=torch.float32)
    bits, steps = quantize(tensor)
    read = np.frombuffer(steps, np.int8).astype(np.float32) * scale_of(bits)
    largest = float(tensor.abs().max())
    change = float(np.abs(tensor.numpy().astype(np.float64) - read.astype(np.float64)).max())
    if largest / 127 < SMALLEST_SCALE:
        assert not read.any()
    else:
        assert change * 254 <= largest
        assert change <= float(scale_of(bits)) / 2  # what `info` states
        assert np.abs(np.frombuffer(steps, np.int8).astype(int)).max() == 127
    assert quantize(torch.from_numpy(read)) == (bits, steps)


ANY = st.floats(-100, 100, width=32)
TINY = st.floats(-(2.0**-110), 2.0**-110, width=32)
ONE_SIDED = st.floats(99.5, 100, width=32)


@settings(max_examples=300, deadline=None)
@given(st.one_of(*(st.lists(values, min_size=1, max_size=20) for values in (ANY, TINY, ONE_SIDED))))
def test_no_value_changes_by_more_than_a_254th(values: list[float]) -> None:
    assert_close(values)


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 0xC80000), st.integers(-130, 6), st.integers(0, 2**32 - 1))
def test_nor_whatever_the_scale(mantissa: int, exponent: int, seed: int) -> None:
    largest = min(100.0, float(np.ldexp(np.float32(mantissa / 2**24), exponent)))
    assert_close([largest, *(np.random.default_rng(seed).uniform(-largest, largest, 200).astype(np.float32).tolist())])


@pytest.mark.parametrize(
    "values",
    [
        [0.0], [-0.0, 0.0], [100.0], [-100.0, 100.0], [127.0 / 2**10], [2.0**-149], [127 * SMALLEST_SCALE],
        [float(np.nextafter(np.float32(127 * SMALLEST_SCALE), np.float32(0)))],
        [1.27, *(0.01 * step + 0.005 for step in range(-127, 127))],  # every tie between two steps
        [float(np.nextafter(np.float32(1.27), np.float32(2))), 0.005, -0.005],
    ],
)  # fmt: skip
def test_edges(values: list[float]) -> None:
    assert_close(values)


# --- whole subjects ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("topology", [EMBEDDED, SD1], ids=["embedded", "SD 1.x"])
def test_a_whole_subject_fits_even_if_nothing_compresses(topology: Layout) -> None:
    subject = new_subject(topology)
    data = pack(subject)
    read = unpack(data)
    assert len(data) <= CAPACITY
    assert not data[5] & DEFLATED
    assert largest_change(subject, read)[1] <= MOST
    assert list(read) == list(topology.heads)
    assert read.info == CoefficientsInfo(
        name="my dog",
        trigger="sks dog",
        class_word="dog",
        base_architecture=read.info.base_architecture,
        base_fingerprint=topology.fingerprint,
        base_sample=read.info.base_sample,
        extra={"quantized": {"bits": 8, "largest_error": read.info.extra["quantized"]["largest_error"]}},
    )
    assert largest_change(subject, read)[0] <= read.info.extra["quantized"]["largest_error"] < 1e-3
    assert same_weights(subject.info.base_sample, read.info.base_sample)
    assert pack(read) == data
    check_fits(read, topology.denoiser)


def test_what_compresses_is_compressed() -> None:
    subject = new_subject(SD1)
    flat = subject.replace(coeffs={path: torch.full((8, 8), 0.5) for path in subject})
    data = pack(flat)
    assert data[5] & DEFLATED
    assert len(data) < 1_200
    assert largest_change(flat, unpack(data))[1] <= MOST


def test_layers_of_zeros_and_extremes() -> None:
    subject = new_subject(SD1)
    coeffs = dict(subject)
    first, second, third, *_ = coeffs
    coeffs |= {first: torch.zeros(8, 8), second: 100 * torch.eye(8), third: torch.full((8, 8), 1e-30)}
    subject = subject.replace(coeffs=coeffs)
    read = unpack(pack(subject))
    assert largest_change(subject, read)[1] <= MOST
    assert not read[first].any()


TEXTS = st.text(st.characters(exclude_categories=("Cs", "Cc")), max_size=60)


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from([EMBEDDED, SD1]),
    st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=10),
    TEXTS,
    TEXTS,
    st.sampled_from(["trigger", "always"]),
    st.sampled_from(["embedded", "", "some/base"]),
    st.sampled_from([(), SAMPLE, SAMPLE[:2], (1e300, *SAMPLE[1:])]),
    st.sets(st.integers(0, 40)),
    st.integers(0, 1),
)
def test_what_goes_in_comes_out(
    topology: Layout, trigger: str, class_word: str, name: str, gate: Any, base_model: str,
    sample: tuple[float, ...], left_out: set[int], vectors: int,
) -> None:  # fmt: skip
    kept = [path for i, path in enumerate(topology.heads) if i not in left_out]
    info = {"trigger": trigger, "class_word": class_word, "name": name, "gate": gate, "base_model": base_model}
    if not kept and not vectors:
        return
    subject = new_subject(topology, vectors, only=kept, blocks=tuple(kept), base_sample=sample, **info)
    data = pack(subject)
    read = unpack(data)
    assert len(data) <= CAPACITY
    assert largest_change(subject, read)[1] <= MOST
    assert list(read) == kept
    assert (read.info.trigger, read.info.gate) == (trigger, gate)
    assert name.startswith(read.info.name)
    assert read.info.class_word in (class_word, "")
    assert read.info.base_model == ("embedded" if data[5] & FOR_EMBEDDED else "")
    assert (base_model == "embedded") == bool(data[5] & FOR_EMBEDDED)
    assert bool(data[5] & SOME_LAYERS) == (len(kept) < len(topology.heads))
    if topology is EMBEDDED and len(name.encode()) < 256:  # there is room for everything
        assert (read.info.name, read.info.class_word) == (name, class_word)
        assert bool(data[5] & WITH_SAMPLE) == (sample == SAMPLE)
    check_fits(read, topology.denoiser)
    if len(read.info.name) == len(name) and read.info.class_word == class_word:
        assert pack(read) == data


@pytest.mark.parametrize("layers", ["self", "cross"])
def test_a_subject_on_some_layers(layers: Any) -> None:
    chosen = layer_heads(SD1.denoiser, CoeffConfig(layers=layers))
    subject = new_subject(SD1, only=chosen, layers=layers)
    data = pack(subject)
    assert len(data) < 2_000
    read = unpack(data)
    assert sorted(read) == sorted(chosen)
    check_fits(read, SD1.denoiser)
    assert pack(read) == data


def test_a_token_alone() -> None:
    subject = new_subject(SD1, only=())
    read = unpack(pack(subject))
    assert len(read) == 0
    assert read.tokens["text_encoder"].shape == (1, 768)


def test_a_few_layers_of_stable_diffusion_2() -> None:
    subject = new_subject(
        SD2, only=layer_heads(SD2.denoiser, CoeffConfig(blocks=("up_blocks.3.*",))), blocks=("up_blocks.3.*",)
    )
    read = unpack(pack(subject))
    assert {tuple(coeff.shape) for coeff in read.values()} == {(5, 5)}
    assert largest_change(subject, read)[1] <= MOST


# --- what gives way ---------------------------------------------------------------------------------------------------


LETTERS = "qWmZ4kXbT9sLfQ2vNcYpR7hJdG5xKaE8uBtMwV3zHoS6yCrPiFnDg1jU"  # in this order nothing compresses


def test_the_name_then_the_sample_then_the_class_word_give_way() -> None:
    def kept(trigger: int, class_word: int = 10, name: str = LETTERS[:2]) -> CoefficientsInfo:
        data = pack(new_subject(SD1, trigger=LETTERS[:trigger], class_word=LETTERS[-class_word:], name=name))
        assert not data[5] & DEFLATED
        return unpack(data).info

    # 33 bytes of text beside the sample, 49 without it
    assert kept(10, name=LETTERS[:13]).name == LETTERS[:13]
    assert kept(10, name=LETTERS[:14]).name == LETTERS[:13]
    assert kept(10, name="äöüåäßé oøç").name == "äöüåäß"  # 12 bytes: no half of a character
    assert kept(10, name="abcdefghijkl no").name == "abcdefghijkl"  # and no space at the end
    info = kept(23)
    assert (info.name, len(info.base_sample), info.class_word) == ("", 8, LETTERS[-10:])
    info = kept(24)
    assert (info.name, info.base_sample, info.class_word) == ("", (), LETTERS[-10:])
    info = kept(40)
    assert (info.trigger, info.base_sample, info.class_word) == (LETTERS[:40], (), "")
    assert kept(49).trigger == LETTERS[:49]


def test_the_trigger_never_does() -> None:
    with pytest.raises(CoefficientsError, match=r"takes 50 bytes, but .* 49 are left.*coeff-diffusion card"):
        pack(new_subject(SD1, trigger=LETTERS[:50], class_word=""))
    with pytest.raises(CoefficientsError, match="takes 300 bytes, a QR code keeps 255"):
        pack(new_subject(EMBEDDED, trigger="ä" * 150))
    assert unpack(pack(new_subject(EMBEDDED, trigger="ä" * 127))).info.trigger == "ä" * 127


def test_long_texts_of_a_small_subject() -> None:
    info = unpack(pack(new_subject(EMBEDDED, name="ä" * 500, class_word="ä" * 500))).info
    assert (info.name, info.class_word) == ("ä" * 127, "")


# --- what is refused --------------------------------------------------------------------------------------------------


def reading(subject: Coefficients) -> Coefficients:
    """The subject, with a matrix for a layer of the text encoder."""
    return subject.replace(coeffs={**subject, "text_encoder/text_model.encoder.layers.0.self_attn": torch.eye(12)})


@pytest.mark.parametrize(
    ("subject", "message"),
    [
        (lambda: new_subject(SD1, vectors=2), r"too large for a QR code: its 3584 values take 3\d{3} bytes, 2953 fit"),
        (lambda: new_subject(SD2), "too large for a QR code: its 7074 values"),
        (
            lambda: new_subject(SD1, base_fingerprint="ab" * 32, base_model="some/xl", base_architecture="xl"),
            r"known by heart \(the embedded base, Stable Diffusion 1.x, .*this subject is for some/xl \(xl\)",
        ),
        (lambda: new_subject(SD1, base_fingerprint=""), "a base .* has no base_fingerprint"),
        (lambda: reading(new_subject(SD1)), "no room for the heads of text encoders, .* those of 1 layers"),
    ],
    ids=["two vectors", "SD 2.x", "unknown base", "no base", "text encoder"],
)
def test_what_does_not_fit_says_why_and_what_to_do(subject: Callable[[], Coefficients], message: str) -> None:
    with pytest.raises(CoefficientsError, match=f"{message}.*coeff-diffusion card"):
        pack(subject())


@pytest.mark.parametrize(
    ("subject", "message"),
    [
        (lambda: new_subject(SD1, only=list(SD1.heads)[1:]), "has no coefficients"),
        (lambda: new_subject(SD1, base_fingerprint=EMBEDDED.fingerprint), "the subject is for"),
        (lambda: new_subject(SD1, base_fingerprint=SD1.fingerprint[:8]), "other widths"),
        (
            lambda: new_subject(SD1).replace(tokens={"text_encoder": torch.ones(1, 5)}),
            "token has 5 channels, but the text_encoder of this base has 768",
        ),
        (lambda: new_subject(SD1).replace(tokens={"text_encoder_2": torch.ones(1, 768)}), "text_encoder_2, which"),
    ],
    ids=["missing layer", "other base", "part of a fingerprint", "width", "second encoder"],
)
def test_what_contradicts_itself_is_refused(subject: Callable[[], Coefficients], message: str) -> None:
    with pytest.raises(CoefficientsError, match=message):
        pack(subject())


def test_the_sample_still_tells_a_base_from_its_fine_tunes() -> None:
    unet = UNet2DConditionModel.from_pretrained(embedded_path() / "unet")
    read = unpack(pack(new_subject(EMBEDDED, base_sample=weight_sample(unet)))).info.base_sample
    assert len(read) == 8
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        assert same_weights(read, weight_sample(unet.to(dtype)))
    with torch.no_grad():
        for parameter in unet.parameters():
            parameter *= 1.02
    assert not same_weights(read, weight_sample(unet))


# --- damage -----------------------------------------------------------------------------------------------------------

SMALL = new_subject(SD1, only=list(SD1.heads)[:2], blocks=tuple(list(SD1.heads)[:2]))
VALID = [pack(new_subject(SD1)), pack(SMALL), pack(SMALL.replace(coeffs=dict.fromkeys(SMALL, torch.eye(8)), tokens={}))]
MUTATIONS = st.lists(
    st.tuples(st.sampled_from(["set", "cut", "insert"]), st.integers(0, 3_000), st.integers(0, 255)),
    min_size=1,
    max_size=4,
)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(VALID), MUTATIONS, st.booleans())
def test_damage_is_an_error_or_another_subject(data: bytes, mutations: list[tuple[str, int, int]], seal: bool) -> None:
    changed = data[:-4] if seal else data
    for kind, place, value in mutations:
        # Half of the changes go to the beginning, where every byte means something.
        at = (place // 2 if place % 2 else place % 80) % (len(changed) or 1)
        new = {"set": bytes([value]), "cut": b"", "insert": bytes([value, value])}[kind]
        changed = changed[:at] + new + changed[at + 1 :]
    if seal:
        changed = sealed(changed)
    try:
        read = unpack(changed)
    except CoefficientsError:
        return
    assert seal or changed == data
    assert len(pack(read)) <= CAPACITY


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200), st.integers(0, 31))
def test_junk_is_an_error(junk: bytes, flags: int) -> None:
    for data in (junk, sealed(b"coEf\x01" + bytes([flags]) + bytes.fromhex(SD1.fingerprint)[:8] + junk)):
        with pytest.raises(CoefficientsError):
            unpack(data)


def replaced(at: int, value: int) -> bytes:
    data = bytearray(VALID[0][:-4])
    data[at] = value
    return sealed(bytes(data))


def deflated(body: bytes, after: bytes = b"") -> bytes:
    compressor = zlib.compressobj(9, wbits=-15)
    start = b"coEf\x01\x01" + bytes.fromhex(SD1.fingerprint)[:8]
    return sealed(start + compressor.compress(body) + compressor.flush() + after)


FIRST_SCALE = 14 + 1 + 7 + 1 + 3 + 1 + 6 + 16 + 1


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"https://example.org", "not a subject"),
        (b"", "not a subject"),
        (b"coEf\x01\x00", "damaged: it has 6 bytes"),
        (VALID[0] + bytes(CAPACITY), "damaged: it has"),
        (VALID[0][:-1] + bytes([VALID[0][-1] ^ 1]), "checksum"),
        (replaced(4, 2), "version 2 .* newer coeff-diffusion"),
        (replaced(5, 32), "flags 0x20.* newer coeff-diffusion"),
        (replaced(6, 0), "fingerprint 00.*the embedded base, Stable Diffusion 1.x"),
        (replaced(15, 0xFF), "no UTF-8"),
        (replaced(15, 0x07), "control characters"),
        (replaced(FIRST_SCALE + 1, 0x7F), "a scale is 1"),
        (replaced(FIRST_SCALE + 1, 0xFF), "a scale is (inf|nan)"),
        (sealed(VALID[0][:-4] + b"\0"), "1 bytes are left over"),
        (sealed(VALID[0][:-5]), "769 bytes|768 bytes are expected where 767"),
        (deflated(bytes(2 * 2**20)), "compressed part"),
        (deflated(bytes(MAX_BODY)), "left over"),
        (deflated(plain_body(new_subject(EMBEDDED)), after=b"x"), "compressed part"),
        (sealed(b"coEf\x01\x01" + bytes.fromhex(SD1.fingerprint)[:8] + b"\xff\xff"), "damaged: Error"),
    ],
)  # fmt: skip
def test_damage_is_named(data: bytes, message: str) -> None:
    with pytest.raises(CoefficientsError, match=message):
        unpack(data)


def test_a_mask_with_layers_that_the_base_has_not() -> None:
    topology = EMBEDDED
    count = len(topology.heads)
    if count % 8 == 0:
        pytest.skip("the mask of this base has no bits to spare")
    mask = ((1 << count) | 1).to_bytes(-(-count // 8), "little")
    data = sealed(b"coEf\x01\x04" + bytes.fromhex(topology.fingerprint)[:8] + b"\0\0\0" + mask + b"\0" + bytes(10_00))
    with pytest.raises(CoefficientsError, match=f"more layers than the {count}"):
        unpack(data)


# --- the page ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "subject",
    [
        new_subject(EMBEDDED),
        new_subject(SD1),
        SMALL,
        SMALL.replace(coeffs=dict.fromkeys(SMALL, torch.eye(8)), tokens={}),
    ],
    ids=["embedded", "SD 1.x", "some layers", "compressed"],
)
def test_the_reader_of_the_page_reads_the_same(subject: Coefficients) -> None:
    page = (ROOT / "docs" / "qr.md").read_text(encoding="utf-8")
    names: dict[str, Any] = {}
    exec(page.split("```python\n")[1].split("```")[0], names)
    topology = EMBEDDED if subject.info.base_fingerprint == EMBEDDED.fingerprint else SD1
    data = pack(subject)
    read = unpack(data)
    width = topology.widths["text_encoder"]
    trigger, class_word, name, sample, coeffs, token = names["read"](data, topology.heads, width)
    assert (trigger, class_word, name) == (read.info.trigger, read.info.class_word, read.info.name)
    assert tuple(sample) == read.info.base_sample
    assert {path: coeff.flatten().tolist() for path, coeff in read.items()} == coeffs
    assert [value for vectors in read.tokens.values() for value in vectors.flatten().tolist()] == token


def test_the_page_names_the_bases() -> None:
    page = (ROOT / "docs" / "qr.md").read_text(encoding="utf-8")
    rows = re.findall(
        r"^\| (Stable Diffusion \d\.x) \| `(\w+)` \| (\d+) \| ([\d, ]+) \| ([\d,]+) \|$", page, re.MULTILINE
    )
    assert rows == [
        (
            name,
            topology.fingerprint[:16],
            str(len(topology.heads)),
            ", ".join(map(str, sorted(set(topology.heads.values())))),
            f"{topology.widths['text_encoder']:,}",
        )
        for name, topology in zip(KNOWN[1:], (SD1, SD2), strict=True)
    ]


def test_a_quantized_subject_is_one_like_any_other(tmp_path: Path) -> None:
    read = unpack(pack(new_subject(SD1)))
    read.save(tmp_path / "dog.safetensors")
    again = Coefficients.load(tmp_path / "dog.safetensors")
    assert again == read
    assert again.info.extra == read.info.extra
    renamed = replace(again.info, name="other")
    assert again.replace(info=renamed).info.extra["quantized"]["bits"] == 8


def test_a_subject_of_two_text_encoders_becomes_a_card() -> None:
    tokens = {"text_encoder": torch.ones(1, 768), "text_encoder_2": torch.ones(1, 1280)}
    subject = Coefficients({}, tokens, CoefficientsInfo(trigger="sks dog"), "unet", {"mid_block": torch.ones(1, 2048)})
    with pytest.raises(
        CoefficientsError, match="room for .* one .* those of 2, and 4,096 values.*coeff-diffusion card"
    ):
        pack(subject)
