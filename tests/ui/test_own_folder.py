"""The page's temporary folder is its own, also where gradio's default cannot be used."""

import json
import os
import re
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

gradio_client = pytest.importorskip("gradio_client")

from coeff_diffusion.ui import PageError  # noqa: E402
from coeff_diffusion.ui.own_folder import NAME, VARIABLE, own_folder  # noqa: E402


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Where a system has its temporary files; gradio's own folder there is not ours to use."""
    place = tmp_path / "tmp"
    place.mkdir()
    (place / "gradio").write_text("somebody else's")
    return place


@contextmanager
def page(place: Path, *flags: str) -> Iterator[subprocess.Popen[str]]:
    """The real command; it is killed at the end, if it still lives."""
    known = {name: value for name, value in os.environ.items() if name != VARIABLE}
    with subprocess.Popen(
        [sys.executable, "-m", "coeff_diffusion.cli", "studio", "--port", "0", *flags],
        cwd=Path(__file__).parents[2],
        env={**known, "TMPDIR": str(place)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as running:
        try:
            yield running
        finally:
            running.kill()


def upload(address: str) -> str:
    body = b'--part\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\nx\r\n--part--\r\n'
    kind = {"Content-Type": "multipart/form-data; boundary=part"}
    with urllib.request.urlopen(urllib.request.Request(f"{address}gradio_api/upload", body, kind), timeout=30) as sent:
        (path,) = json.loads(sent.read())
    return str(path)


def test_a_place_that_cannot_be_had_is_said_in_one_line(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = place / "gradio" / "new"
    monkeypatch.setenv(VARIABLE, str(wrong))
    said = f"the page cannot keep its temporary files in {wrong}: Not a directory; set {VARIABLE} to a folder"
    with pytest.raises(PageError, match=re.escape(said)):
        own_folder.__wrapped__()
    assert os.environ[VARIABLE] == str(wrong)


def test_the_whole_page_uses_it_and_takes_it_away(place: Path, tiny_base_dir: Path, tmp_path: Path) -> None:
    flags = ["--base", str(tiny_base_dir), "--subjects_dir", f"{tmp_path}/subjects"]
    with page(place, *flags, "--output_dir", f"{tmp_path}/pictures") as running:
        assert running.stdout is not None
        address = running.stdout.readline().split(" at ")[1].split()[0]
        (folder,) = place.glob(f"{NAME}*")
        client = gradio_client.Client(address, verbose=False, download_files=f"{tmp_path}/got")
        files, _ = client.predict("a dog", None, {"steps": 1, "seed": 3}, False, api_name="/draw")
        client.close()
        (saved,) = (tmp_path / "pictures").iterdir()
        assert Path(files[0]).read_bytes() == saved.read_bytes()
        assert [path.name for path in folder.rglob("*.png")] == [saved.name]
        assert Path(upload(address)).is_relative_to(folder)
        assert sorted(place.iterdir()) == [folder, place / "gradio"]
        running.terminate()
        errors = running.communicate(timeout=60)[1]
    unexpected = [line for line in errors.splitlines() if not line.startswith("coeff-diffusion: loading the ")]
    assert (running.returncode, unexpected) == (0, [])
    assert list(place.iterdir()) == [place / "gradio"]
