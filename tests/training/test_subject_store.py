"""Where many subjects go: folders and buckets alike."""

import uuid
from pathlib import Path

import pytest
import torch

from coeff_diffusion import Coefficients, CoefficientsInfo
from coeff_diffusion.subject.errors import CoefficientsError
from coeff_diffusion.training.subject_store import StoreError, SubjectStore

SUBJECT = Coefficients({"mid_block.attn1": torch.eye(2)}, info=CoefficientsInfo(name="rex"))


@pytest.fixture(params=["folder", "file", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> SubjectStore:
    name = f"lib {uuid.uuid4()}"
    places = {"folder": str(tmp_path / name), "file": f"file://{tmp_path}/{name}", "memory": f"memory://{name}/below"}
    return SubjectStore(places[request.param])


def test_what_is_written_is_there(store: SubjectStore) -> None:
    assert not store.has("rex")
    store.write(".runs/rex/README.md", b"a card")
    store.write("rex.safetensors", b"first")
    with pytest.raises(CoefficientsError, match=r"rex\.safetensors: "):
        store.read("rex")
    store.write("rex.safetensors", SUBJECT.to_bytes())
    again = SubjectStore(store.place)
    assert again.has("rex")
    assert not again.has("Rex")
    assert again.read("rex") == SUBJECT
    assert str(again.place_of("rex")) == f"{store.place}/rex.safetensors"


def test_a_folder_is_one_under_either_name(tmp_path: Path) -> None:
    SubjectStore(f"file://{tmp_path}/lib").write("rex.safetensors", SUBJECT.to_bytes())
    store = SubjectStore(tmp_path / "lib")
    assert store.has("rex")
    assert store.place_of("rex") == SubjectStore(f"file://{tmp_path}/lib").place_of("rex")
    assert [path.name for path in (tmp_path / "lib").iterdir()] == ["rex.safetensors"]


def test_what_cannot_be_reached_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="never://lib cannot be reached: Protocol not known: never"):
        SubjectStore("never://lib")
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match=r"file/rex\.safetensors cannot be reached: "):
        SubjectStore(tmp_path / "file").write("rex.safetensors", b"")
