"""What a user names is opened in one place: regular files alone, of bounded size, and nothing ever waits."""

import os
import re
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from subject_maker import of_stable_diffusion

import coeff_diffusion
from coeff_diffusion import Coefficients
from coeff_diffusion.commands.card import make_card_file
from coeff_diffusion.commands.config import CardConfig, QrConfig
from coeff_diffusion.commands.info import collect_facts
from coeff_diffusion.commands.qr import make_qr_file
from coeff_diffusion.families.load import load_base
from coeff_diffusion.inference.replay import Replay
from coeff_diffusion.sources.qr_code import read_qr
from coeff_diffusion.subject.errors import UserError
from coeff_diffusion.subject.user_file import FileError, open_file, read_file, read_text, user_path
from coeff_diffusion.training.captions import read_caption
from coeff_diffusion.training.checkpoint import Checkpoint
from coeff_diffusion.training.config import parse_train_config
from coeff_diffusion.training.timeline import load_timeline

PACKAGE = Path(coeff_diffusion.__file__).parent
SUBJECT = of_stable_diffusion(name="dog", trigger="sks dog")


def card(path: Path) -> None:
    SUBJECT.save(path.parent / "dog.safetensors")
    make_card_file(CardConfig(str(path.parent / "dog.safetensors"), str(path), str(path.parent / "out.png")))


def qr(path: Path) -> None:
    SUBJECT.save(path.parent / "dog.safetensors")
    make_qr_file(QrConfig(str(path.parent / "dog.safetensors"), str(path.parent / "out.png"), str(path)))


def caption(path: Path) -> None:
    read_caption(path)


READERS: dict[str, Callable[[Path], object]] = {
    "subject": Coefficients.load,
    "info": collect_facts,
    "picture of a card": card,
    "picture above a code": qr,
    "code": read_qr,
    "picture to draw again": Replay.read,
    "base": load_base,
    "timeline": load_timeline,
    "checkpoint": Checkpoint.load,
    "config": lambda path: parse_train_config(["--config", str(path)]),
}


@contextmanager
def special(kind: str, path: Path) -> Iterator[None]:
    """A path that leads to something that is no file, or has no end."""
    if kind == "named pipe":
        os.mkfifo(path)
    elif kind == "endless device":
        path.symlink_to("/dev/zero")
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as one:
            one.bind(str(path))
    elif kind == "link to itself":
        path.symlink_to(path)
    elif kind == "5 GB":
        with path.open("wb") as file:
            file.truncate(5 * 10**9)
    yield
    path.unlink(missing_ok=True)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("kind", ["named pipe", "endless device", "socket", "link to itself", "5 GB", "nothing"])
def test_whatever_a_name_leads_to(kind: str, reader: str) -> None:
    with tempfile.TemporaryDirectory() as folder:  # a socket's path has at most 107 characters
        path = Path(folder, "x.png" if "picture" in reader else "x.safetensors")
        with special(kind, path), pytest.raises(UserError) as caught:
            READERS[reader](path)
    assert "\n" not in " ".join(getattr(caught.value, "problems", [str(caught.value)]))


@pytest.mark.parametrize("kind", ["endless device", "5 GB"])
def test_a_caption_is_bounded(kind: str, tmp_path: Path) -> None:
    with (
        special(kind, tmp_path / "a.txt"),
        pytest.raises(UserError, match=r"a\.txt (is not a regular|has more than 65,536)"),
    ):
        read_caption(tmp_path / "a.txt")


def test_what_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"\xef\xbb\xbfa\r\nb")
    (tmp_path / "link").symlink_to(path)
    assert read_file(tmp_path / "link", 7) == path.read_bytes()
    assert read_text(path, 7) == "a\nb"
    with pytest.raises(FileError, match=r"a has 7 bytes, expected at most 6"):
        read_file(path, 6)
    with pytest.raises(FileError, match="is not a regular file but a folder"):
        open_file(tmp_path)
    with pytest.raises(FileError, match="is no name that a file can have"):
        open_file("a\0b")
    with pytest.raises(FileError, match="cannot be read: File name too long"):
        open_file("a" * 5_000)
    with pytest.raises(OSError, match="there is no file"):  # who catches those of the system catches this
        open_file(tmp_path / "b")
    with pytest.raises(FileError, match="expected at most 9"):  # it does not tell its size
        read_file("/proc/self/status", 9)
    assert user_path("~nobody-of-this-name") == Path("~nobody-of-this-name")
    assert user_path("~/a") == Path.home() / "a"


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("https://huggingface.co/user/my-dog", "an address on the Hub; give the id alone: user/my-dog"),
        ("hf.co/user/my-dog/blob/main/coefficients.safetensors", "give the id alone: user/my-dog"),
        (
            "https://example.com/card.png?width=8",
            "https:/example.com/card.png?width=8 is an address and no file; download",
        ),
        ("https://huggingface.co/datasets/user/dogs", "is an address and no file"),
        ("file:///home/me/dog.safetensors", "is an address and no file"),
    ],
)
def test_addresses_are_called_that(address: str, said: str) -> None:
    with pytest.raises(UserError, match=re.escape(said)):
        Coefficients.load(address)


def test_nothing_waits_for_a_pipe_that_takes_a_files_place(tmp_path: Path) -> None:
    """Between the look at it and its opening anything may happen."""
    script = (
        "import os, sys; from pathlib import Path; from coeff_diffusion.subject import user_file as u\n"
        "real = os.open\n"
        "def late(path, flags): os.unlink(path); os.mkfifo(path); return real(path, flags)\n"
        "os.open = late\n"
        "try: u.open_file(sys.argv[1])\n"
        "except u.FileError as error: print(error)"
    )
    (tmp_path / "a").touch()
    asked = [sys.executable, "-c", script, tmp_path / "a"]
    done = subprocess.run(asked, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip().endswith("a is not a regular file but a named pipe")


# What opens a file in another way, and why it may.
OWN_FILES = {
    "subject/user_file": "the place itself",
    "subject/atomic_write": "writes a file that it makes itself",
    "method/kernels/cuda_build": "the package's own sources",
    "method/kernels/native_build": "the package's own sources",
    "sources/shared_folder": "bounded by itself; only what `is_file` says is one",
    "families/parts": "weights, as large as they are, of what `kind_of_file` says is a safetensors file",
    "inference/upscaling": "weights of what `kind_of_file` says is a safetensors file",
    "hub": "a token, which may come through a pipe",
    "service/import_export": "what it has made in a folder of its own",
    "subject/private_folder": "a folder of its own, to lock it",
    "ui/train_previews": "previews of a run, as they lie in its folder",
    "inference/loaded_subjects": "no file: it opens its watch",
}
CALLS = re.compile(
    r"(?<![\w.])(?<!def )open\(|\.(open|read_bytes|read_text)\((?!source,|io\.|buffer\b)"
    r"|\bload_file\(|(?<!safetensors\.)\btorch\.load\("
)


def test_no_other_place_opens_files() -> None:
    """Pillow may be given a file that is open already."""
    found = {
        path.relative_to(PACKAGE).with_suffix("").as_posix()
        for path in PACKAGE.rglob("*.py")
        if CALLS.search(path.read_text(encoding="utf-8").replace("Image.open(file", ""))
    }
    assert found == set(OWN_FILES)
