"""What is compiled is kept, and whatever happens to it or to the compiler: no crash, and the same numbers."""

import ctypes
import os
import platform
import random
import re
import resource
import shutil
import stat
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from exactness import assert_as_exact_as_plain, error, exact

from coeff_diffusion.method.kernels import native, native_build, recombined_attention, sealed_cache
from coeff_diffusion.method.kernels.build_error import BuildError

COPIER = """#!/bin/sh
# A compiler for tests: copies what a real one made. Its last argument is the place for it.
if test "$1" = --version; then echo copier; exit; fi
echo called >> "$0.calls"
for place; do :; done
cp "$0.library" "$place"
"""


def is_sealed(library: Path) -> bool:
    return sealed_cache.read(library, native_build.MOST) is not None


@dataclass
class Place:
    """A cache, the library that belongs into it, and a compiler that makes this library at once.

    Attributes:
        data: of the library, without its seal.
    """

    cache: Path
    name: str
    data: bytes
    compiler: Path

    @property
    def library(self) -> Path:
        return self.cache / self.name

    def store(self, data: bytes | None = None, name: str | None = None) -> None:
        """Put a sealed library into the cache, whatever it is."""
        data = self.data if data is None else data
        self.library.write_bytes(data + sealed_cache._seal(Path(name or self.name), data))

    def other_compiler(self, body: str) -> None:
        """Whatever it does, it says the same version, so its library has the same name."""
        script = self.cache.parent / "c++"
        shutil.copy(f"{self.compiler}.library", f"{script}.library")
        script.write_text(f'#!/bin/sh\nfor place; do :; done\nif test "$1" = --version; then echo; exit; fi\n{body}\n')
        script.chmod(0o755)
        os.environ["CXX"] = str(script)

    @property
    def calls(self) -> int:
        log = Path(f"{self.compiler}.calls")
        return len(log.read_text().splitlines()) if log.exists() else 0


def place_in(folder: Path, compiler: Path, name: str) -> Place:
    """A place of its own, with the cache folder made."""
    cache = folder / "coeff-diffusion"
    cache.mkdir(mode=0o700)
    own = folder / "copier"
    shutil.copy(compiler, own)
    os.link(f"{compiler}.library", f"{own}.library")
    os.environ["XDG_CACHE_HOME"], os.environ["CXX"] = str(folder), str(own)
    return Place(cache, name, Path(f"{compiler}.library").read_bytes(), own)


def library_name() -> str:
    flags = native_build.flags_for("x86_64", torch.backends.cpu.get_cpu_capability())
    assert flags is not None
    return f"recombined-attention-{native_build._name(native_build._compiler(), flags)}.so"


@pytest.fixture(scope="module")
def compiler(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The one real compilation of these tests, and a compiler that copies it."""
    folder = tmp_path_factory.mktemp("compiled")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        try:
            meant = native_build.load()
        except BuildError as problem:
            if os.environ.get("CI"):
                pytest.fail(f"CI has to test the CPU kernel: {problem}")
            pytest.skip(str(problem))
        if meant is None:
            pytest.skip("there is no kernel for this machine")
        (made,) = (folder / "coeff-diffusion").iterdir()  # nothing half done is left
        assert is_sealed(made)
        assert made.parent.stat().st_mode & 0o077 == 0
        before = made.stat().st_mtime_ns
        assert isinstance(native_build.load(), ctypes.CDLL)
        assert made.stat().st_mtime_ns == before
    script = folder / "copier"
    script.write_text(COPIER)
    script.chmod(0o755)
    Path(f"{script}.library").write_bytes(made.read_bytes()[: -sealed_cache.SEAL])
    return script


@pytest.fixture
def place(compiler: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.setenv("XDG_CACHE_HOME", "")  # both are put back
    monkeypatch.setenv("CXX", "")
    found = place_in(tmp_path, compiler, "")
    found.name = library_name()
    return found


def right_numbers() -> str:
    """Load the library as attention does, compute, and tell what was said; a wrong number is an error."""
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, 3, rows, 8, generator=generator) for rows in (20, 30, 30))
    coeff = torch.randn(3, 3, generator=generator)
    native.library.cache_clear()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        outputs = [recombined_attention(query, key, value, coeff) for _ in range(2)]
    best = exact(query, key, value, coeff)
    for output in outputs:
        assert error(output, best) < 1e-5
    assert (native.library() is None) == bool(said)
    assert len(said) <= 1
    return str(said[0].message) if said else ""


@pytest.fixture(autouse=True)
def _own_library() -> Any:
    yield
    native.library.cache_clear()


# ---- a cache that is damaged -----------------------------------------------------------------------------------------

Damage = Callable[[Place], Any]


def noise(size: int) -> bytes:
    return random.Random(0).randbytes(size)


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def damaged(change: Callable[[bytes], bytes]) -> Damage:
    """The stored library, seal included, is something else now."""

    def damage(place: Place) -> None:
        place.store()
        place.library.write_bytes(change(place.library.read_bytes()))

    return damage


def instead(make: Callable[[Path], Any]) -> Damage:
    """Something else lies under the library's name."""
    return lambda place: make(place.library)


def huge(path: Path) -> None:
    path.touch()
    os.truncate(path, 1 << 36)


# Once these ended the process, or hung it: they are tried in one of their own.
DEADLY: dict[str, Damage] = {
    "half of it": damaged(lambda data: data[: len(data) // 2]),
    "its first page": damaged(lambda data: data[:4096]),
    "without its last page": damaged(lambda data: data[:-4096]),
    "zeros": damaged(lambda data: bytes(len(data))),
    "zeros after the first page": damaged(lambda data: data[:4096] + bytes(len(data) - 4096)),
    "zeros before the last page": damaged(lambda data: bytes(len(data) - 4096) + data[-4096:]),
    "noise after the first page": damaged(lambda data: data[:4096] + noise(len(data) - 4096)),
    "another library": damaged(lambda data: Path(torch._C.__file__).read_bytes()),
    "a named pipe": instead(os.mkfifo),
    "a device": instead(lambda path: path.symlink_to("/dev/zero")),
}
REBUILT: dict[str, Damage] = {
    "missing": lambda place: None,
    "empty": damaged(lambda data: b""),
    "noise": damaged(lambda data: noise(len(data))),
    "one byte less": damaged(lambda data: data[:-1]),
    "one byte more": damaged(lambda data: data + b"\0"),
    "a bit of its code": damaged(lambda data: flipped(data, len(data) // 2)),
    "a bit of its header": damaged(lambda data: flipped(data, 0x20)),
    "a bit of its seal": damaged(lambda data: flipped(data, len(data) - 1)),
    "without its seal": damaged(lambda data: data[: -sealed_cache.SEAL]),
    "nothing but its seal": damaged(lambda data: data[-sealed_cache.SEAL :]),
    "twice": damaged(lambda data: data + data),
    "text": damaged(lambda data: b"not a library"),
    "under another's name": lambda place: place.store(name="recombined-attention-0.so"),
    "of another kind of CPU": lambda place: place.store(place.data[:18] + b"\xb7\0" + place.data[20:]),
    "of 32 bits": lambda place: place.store(place.data[:4] + b"\1" + place.data[5:]),
    "in need of a library that is gone": lambda place: place.store(place.data.replace(b"libstdc++", b"libgone++")),
    "a link to nowhere": instead(lambda path: path.symlink_to("nowhere")),
    "a circle of links": instead(lambda path: path.symlink_to(path.name)),
    "a socket": instead(lambda path: os.mknod(path, stat.S_IFSOCK | 0o600)),
    "64 GB of nothing": instead(huge),
}


def folder_instead(make: Callable[[Path], Any]) -> Damage:
    """Something else lies where the cache should."""

    def damage(place: Place) -> None:
        place.cache.rmdir()
        make(place.cache)

    return damage


def variable(name: str, value: str) -> Damage:
    return lambda place: os.environ.update({name: value})


def compiled_by(body: str) -> Damage:
    return lambda place: place.other_compiler(body)


# What cannot be mended, and what is said.
WITHOUT: dict[str, tuple[Damage, str]] = {
    "a folder for a library": (instead(Path.mkdir), "recombined-attention-.*\\.so"),
    "a file for a cache": (folder_instead(Path.touch), "coeff-diffusion"),
    "a pipe for a cache": (folder_instead(os.mkfifo), "coeff-diffusion"),
    "a link to nowhere for a cache": (folder_instead(lambda path: path.symlink_to("nowhere")), "coeff-diffusion"),
    "a cache that all may write to": (lambda place: place.cache.chmod(0o777), "others than you may write to"),
    "no folder can be made": (variable("XDG_CACHE_HOME", "/proc/self"), "/proc/self/coeff-diffusion"),
    "a device for a folder": (variable("XDG_CACHE_HOME", "/dev/null"), "/dev/null"),
    "a name that is too long": (variable("XDG_CACHE_HOME", f"/{300 * 'x'}"), "name too long"),
    "a compiler that fails": (compiled_by('echo "a.cpp:1: error: no such thing" >&2; exit 1'), "failed: .* no such"),
    "a compiler that fails in bytes": (compiled_by(r"printf 'error: \351\n' >&2; exit 1"), r"error: \\xe9"),
    "a compiler that crashes": (compiled_by("kill -SEGV $$"), "exit status -11"),
    "a compiler that hangs": (compiled_by("sleep 60"), "took more than 1 seconds"),  # the shell's child, not the shell
    "a compiler of nothing": (compiled_by("exit 0"), "a trial of what was compiled failed"),
    "a compiler of empty files": (compiled_by(': > "$place"'), "a trial of what was compiled failed"),
    "a compiler of text": (compiled_by('echo text > "$place"'), "a trial of what was compiled failed"),
    "a compiler of a half": (compiled_by('head -c 30000 "$0.library" > "$place"'), "trial .* failed: exit status -"),
    "a compiler of other things": (compiled_by(f'cp "{torch._C.__file__}" "$place"'), "trial .* failed: .*rror"),
    "a disk that is full for it": (
        compiled_by('echo "fatal error: native.o: No space left on device" >&2; exit 1'), "No space left on device"
    ),
}  # fmt: skip


@pytest.mark.parametrize("damage", REBUILT)
def test_what_is_damaged_is_made_anew(damage: str, place: Place) -> None:
    REBUILT[damage](place)
    assert right_numbers() == ""
    assert place.calls == 2  # compiled and linked
    assert is_sealed(place.library)
    assert list(place.cache.iterdir()) == [place.library]
    assert right_numbers() == ""
    assert place.calls == 2


@pytest.mark.parametrize("damage", WITHOUT)
def test_what_cannot_be_mended_is_said_once(damage: str, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native_build, "TIMEOUT", 1 if "hangs" in damage else native_build.TIMEOUT)
    happens, expected = WITHOUT[damage]
    happens(place)
    said = right_numbers()
    assert said.startswith("recombined attention runs without its CPU kernel, slower: ")
    assert "\n" not in said
    assert re.search(expected, said)
    if place.cache.is_dir() and not place.library.is_dir():
        assert not list(place.cache.iterdir())


def child(folder: Path, compiler: Path, half: int) -> None:
    """What a process of its own does: build into a cache beside another one, go through half of `DEADLY`, fill a disk.

    Prints a line for everything that went well.
    """
    torch.set_num_threads(1)
    shared = folder / "shared"
    os.environ["XDG_CACHE_HOME"], os.environ["CXX"] = str(shared), str(shared / "copier")
    (folder / f"ready {half}").touch()
    while not (folder / f"ready {1 - half}").exists():
        time.sleep(0.001)
    print(right_numbers(), "beside another", flush=True)
    for name, damage in list(DEADLY.items())[half::2]:
        (folder / name).mkdir()
        place = place_in(folder / name, compiler, "")
        place.name = library_name()
        damage(place)
        print(right_numbers(), name, is_sealed(place.library), place.calls, flush=True)
    (folder / f"full {half}").mkdir()
    place = place_in(folder / f"full {half}", compiler, "")
    if half:  # its disk has room for what is compiled, not for what is stored
        place.other_compiler('ulimit -S -f unlimited; cp "$0.library" "$place"')
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))
    print(right_numbers(), list(place.cache.iterdir()))


def test_a_process_does_not_end_of_it(compiler: Path, tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    (shared / "coeff-diffusion").mkdir(parents=True, mode=0o700)
    (shared / "copier").write_text(compiler.read_text().replace("cp ", "sleep 0.2; cp "))  # both at the same time
    (shared / "copier").chmod(0o755)
    os.link(f"{compiler}.library", shared / "copier.library")
    script = f"import sys; sys.path[:0] = {sys.path}\nfrom test_native_build import child, Path\n"
    call = f"child(Path({str(tmp_path)!r}), Path({str(compiler)!r}), int(sys.argv[1]))"
    folder = str(Path(__file__).parent)
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", script + call, str(half)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            cwd=folder,
        )
        for half in range(2)
    ]  # fmt: skip
    printed = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], printed
    for half, (output, _) in enumerate(printed):
        first, *rest, last = output.splitlines()
        assert first == " beside another"
        assert rest == [f" {name} True 2" for name in list(DEADLY)[half::2]]
        assert last.startswith("recombined attention runs without its CPU kernel, slower: ")
        assert last.endswith(" []")  # nothing half is left
    assert "takes no larger file" in printed[1][0]
    (made,) = (shared / "coeff-diffusion").iterdir()
    assert is_sealed(made)
    assert len((shared / "copier.calls").read_text().splitlines()) == 4  # they did build at the same time


# ---- what is compiled, where and by what -----------------------------------------------------------------------------


def test_what_is_good_is_left_alone(place: Place) -> None:
    place.store()
    (place.cache / f".{place.name}.0123abcd.tmp").write_bytes(b"left by a process that was killed")
    assert right_numbers() == ""
    assert place.calls == 0
    moved = place.cache / "elsewhere"
    place.library.rename(moved)
    place.library.symlink_to(moved)
    assert right_numbers() == ""
    assert place.calls == 0


def test_a_compiler_whose_version_is_no_text(place: Place) -> None:
    script = place.compiler
    script.write_text(script.read_text().replace("echo copier", r"printf '\351\377\n'"))
    assert right_numbers() == ""
    assert place.calls == 2


def test_another_compiler_makes_another_library(place: Place) -> None:
    assert right_numbers() == ""
    script = place.compiler
    script.write_text(script.read_text().replace("echo copier", "echo another"))
    assert right_numbers() == ""
    assert len(list(place.cache.iterdir())) == 2


def test_another_default_device(place: Place) -> None:
    place.store()
    native.library.cache_clear()
    tensors = [torch.randn(1, 2, 5, 4, requires_grad=True) for _ in range(3)]
    coeff = torch.randn(2, 2, requires_grad=True)
    with torch.device("meta"):
        assert native.library() is not None
        recombined_attention(*tensors, coeff).sum().backward()
    assert all(x.grad is not None and x.grad.device.type == "cpu" for x in (*tensors, coeff))


def test_without_a_compiler(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(place.cache))
    monkeypatch.delenv("CXX")
    assert "no C++ compiler found (c++, g++, clang++)" in right_numbers()


@pytest.mark.parametrize("where", ["not wanted", "another CPU", "another machine", "another system"])
def test_not_meant_to_be(where: str, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    if where == "not wanted":
        monkeypatch.setenv("COEFF_DIFFUSION_NATIVE", "0")
    elif where == "another CPU":
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "DEFAULT")
    elif where == "another machine":
        monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    else:
        monkeypatch.setattr(sys, "platform", "darwin")
    native.library.cache_clear()
    assert native.library() is None
    assert place.calls == 0


@pytest.mark.parametrize("machine", ["x86_64", "AMD64"])
@pytest.mark.parametrize("capability", ["AVX2", "AVX512"])
def test_flags_of_the_cpus_that_it_is_for(machine: str, capability: str) -> None:
    flags = native_build.flags_for(machine, capability)
    assert flags is not None
    assert "-mfma" in flags
    assert ("-mavx512f" in flags) == (capability == "AVX512")
    assert not any(flag.startswith(("-march", "-mcpu", "-mtune")) for flag in flags)  # the library may be shared


@pytest.mark.parametrize("machine", ["aarch64", "arm64", "armv7l", "ppc64le", "s390x", "riscv64", ""])
def test_no_flags_for_other_cpus(machine: str) -> None:
    for capability in ("DEFAULT", "AVX2", "AVX512", "SVE256", "VSX", "ZVECTOR", ""):
        assert native_build.flags_for(machine, capability) is None


def test_narrower_vectors(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    if torch.backends.cpu.get_cpu_capability() == "AVX512":
        monkeypatch.delenv("CXX")
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    native.library.cache_clear()
    projected = [torch.randn(2, 5, rows, 40) for rows in (70, 90, 90)]
    tensors = [*projected, 0.3 * torch.randn(2, 5, 5)]
    assert_as_exact_as_plain(native.native_attention, tensors, None, train=True)


def test_a_compiler_that_is_wrong(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = native_build.SOURCE.read_text()
    wrong = tmp_path / "wrong.cpp"
    wrong.write_text(source.replace("weight[h * H + j] * inverse", "2 * weight[h * H + j] * inverse"))
    assert wrong.read_text() != source
    monkeypatch.setattr(native_build, "SOURCE", wrong)
    monkeypatch.setattr(native_build, "FLAGS", ["-O0", *native_build.FLAGS[1:]])
    monkeypatch.delenv("CXX")
    assert "it computes something else" in right_numbers()
    assert not list(place.cache.iterdir())


def test_a_cache_of_somebody_else(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.store()
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    assert "others than you may write to" in right_numbers()


def test_no_place_for_a_cache(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", nowhere)
    assert "Could not determine home directory" in right_numbers()


def test_no_python_to_try_it_with(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "")
    assert "there is no Python to try it with" in right_numbers()
    assert not list(place.cache.iterdir())
