"""Another base is put in the place of the one that is drawn with; if that fails, nothing has changed."""

import json
import re
import shutil
import threading
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from hub_server import HubServer

from coeff_diffusion.families import memory
from coeff_diffusion.families.errors import BaseModelError
from coeff_diffusion.families.load import load_base
from coeff_diffusion.inference.request import DrawRequest, StudioError
from coeff_diffusion.service import Bases, StudioService, TrainingForm, bases
from coeff_diffusion.service.base_history import FILE_NAME
from coeff_diffusion.training.config import ConfigError

DRAWING = DrawRequest("a dog", seed=1, steps=1)


@pytest.fixture
def xl_dir(tiny_xl_pipe: Any, tmp_path: Path) -> Path:
    tiny_xl_pipe.save_pretrained(tmp_path / "tiny-xl")
    return tmp_path / "tiny-xl"


def unchanged(found: Bases, service: StudioService) -> bool:
    """Whether the base draws as before, and nothing is remembered of another."""
    return found.current is service and bool(service.drawings.draw(DRAWING).files) and len(found.names()) == 2


def test_a_switch_and_back(service: StudioService, xl_dir: Path, tiny_base_dir: Path) -> None:
    found, shown = Bases(service), []
    found.show = lambda: shown.append(found.current.studio.base)
    (before,) = service.drawings.draw(DRAWING, compare=False).pictures
    assert [entry.problem for entry in service.library_view.entries()] == ["", ""]
    said: list[str] = []

    new = found.switch(f"  {xl_dir} ", said.append)
    assert (found.current, shown, new.studio.base, said) == (new, ["tiny-xl"], "tiny-xl", ["Loading tiny-xl ..."])
    assert "prompt_2" in new.studio.family.drawing
    assert all(entry.misfit for entry in new.library_view.entries())
    assert found.look(str(tiny_base_dir)).startswith("tiny takes 1 MB of memory for its weights; ")
    assert json.loads((service.library.folder / FILE_NAME).read_text()) == [str(xl_dir)]
    for late in (lambda: service.drawings.draw(DRAWING), lambda: service.studio.size):
        with pytest.raises(StudioError, match="the base was changed to another one; load the page again"):
            late()

    weights = weakref.ref(new.studio.pipe.unet)
    back = found.switch(str(tiny_base_dir))
    assert weights() is None
    assert back.drawings.draw(DRAWING, compare=False).pictures[0].image.tobytes() == before.image.tobytes()
    assert found.names() == [str(tiny_base_dir), str(xl_dir), "embedded"]


def test_a_base_comes_back_with_the_autoencoder_it_was_used_with(
    service: StudioService, tiny_pipe: Any, xl_dir: Path, tiny_base_dir: Path, tmp_path: Path
) -> None:
    """That of the page which it was opened with then, on a page that is opened with another base."""
    with torch.no_grad():
        tiny_pipe.vae.decoder.conv_out.bias.add_(0.3)
    tiny_pipe.vae.save_pretrained(tmp_path / "vae")
    Bases(service, str(tiny_base_dir), {"vae": str(tmp_path / "vae")}).remember()
    listed = [{"name": str(tiny_base_dir), "vae": str(tmp_path / "vae")}]
    assert json.loads((service.library.folder / FILE_NAME).read_text()) == listed

    found = Bases(service, str(xl_dir))
    found.remember()
    new = found.switch(str(tiny_base_dir))
    assert torch.equal(new.studio.pipe.vae.decoder.conv_out.bias, tiny_pipe.vae.decoder.conv_out.bias)
    assert json.loads((service.library.folder / FILE_NAME).read_text()) == [*listed, str(xl_dir)]


def test_what_cannot_be_loaded_changes_nothing(
    service: StudioService, xl_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = Bases(service)
    (xl_dir / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"x" * 100)
    broken = shutil.copytree(xl_dir, tmp_path / "broken")
    shutil.rmtree(broken / "vae")
    wrong = {
        "": "give a base",
        "/no/such/base": "no such file or folder: '/no/such/base'",
        str(service.library.folder): "is not a diffusers folder",
        str(xl_dir): "is not a readable .safetensors file",
        str(broken): "tensors|damaged|readable",
        found.name: "tiny is the base that is drawn with already",
    }
    for name, message in wrong.items():
        with pytest.raises((StudioError, BaseModelError), match=message) as refused:
            found.switch(name)
        assert "\n" not in str(refused.value)
    monkeypatch.setattr(bases, "free_memory", lambda device: 1000)
    with pytest.raises(BaseModelError, match=r"embedded takes 0.1 GB .* and 1 MB are free beside the base"):
        found.switch("embedded")

    def no_page() -> None:
        raise RuntimeError("no page")

    monkeypatch.undo()
    found.show = no_page
    with pytest.raises(RuntimeError, match="no page"):
        found.switch("embedded")
    assert unchanged(found, service)


def test_what_is_at_work_is_not_disturbed(service: StudioService, subject_images: Path, xl_dir: Path) -> None:
    found, loads, go_on = Bases(service), threading.Event(), threading.Event()
    step = threading.Event()

    def draw(on_step: Any, should_stop: Any) -> None:
        step.set()
        go_on.wait(60)

    job = service.jobs.run("someone", draw)
    thread = threading.Thread(target=lambda: list(job))
    thread.start()
    step.wait(60)
    with pytest.raises(StudioError, match="something is being drawn"):
        found.switch(str(xl_dir))
    go_on.set()
    thread.join()

    pictures = sorted(subject_images.iterdir())
    training = service.training_queue.submit(TrainingForm(pictures, "rex", "dog"))
    with pytest.raises(StudioError, match="a subject is being trained"):
        found.switch(str(xl_dir))
    service.training_queue.stop(training.number)
    service.training_queue.close()
    service.training_queue._refusal = ""  # as before it was closed to wait for its end

    def meanwhile() -> None:
        loads.set()
        with pytest.raises(StudioError, match="the base is being changed to tiny-xl"):
            service.drawings.draw(DRAWING)
        with pytest.raises(ConfigError, match="the base is being changed to tiny-xl"):
            service.training_queue.submit(TrainingForm(pictures, "max", "dog"))
        with pytest.raises(StudioError, match="another base is being loaded"):
            found.switch("embedded")

    found.show = meanwhile
    new = found.switch(str(xl_dir))
    assert loads.is_set()
    assert [one.number for one in new.training_queue.jobs] == [training.number]  # is remembered


def test_where_others_reach_the_page_no_path_is_named(
    service: StudioService, xl_dir: Path, tiny_base_dir: Path
) -> None:
    own = Bases(service)
    own.switch(str(xl_dir))
    found = Bases(own.current, str(xl_dir), anyone=False)
    assert found.choices() == [("tiny-xl", "tiny-xl"), ("embedded", "embedded")]
    for name in (str(tiny_base_dir), str(xl_dir), "someone/large-base"):
        with pytest.raises(StudioError, match="not one of the bases that can be chosen here: tiny-xl, embedded;"):
            found.switch(name)
    found.switch("embedded")
    shutil.rmtree(xl_dir / "unet")
    with pytest.raises(BaseModelError, match="^'tiny-xl' is damaged or incomplete") as refused:
        found.switch("tiny-xl")
    assert str(xl_dir.parent) not in str(refused.value)


@pytest.mark.parametrize("content", ["[1]", "{", '["' + "x" * 2_000 + '"]', '["a\\u202eb"]', "[" * 9_000])
def test_a_damaged_list_is_said_and_kept(service: StudioService, xl_dir: Path, content: str) -> None:
    found, path = Bases(service), service.library.folder / FILE_NAME
    path.write_text(content)
    assert found.remark.startswith(f"{path} is not the list of bases")
    assert len(found.choices()) == 2
    found.remember()
    assert path.read_text() == content


def test_a_base_from_the_hub(service: StudioService, server: HubServer, tiny_base_dir: Path) -> None:
    files = {path.relative_to(tiny_base_dir).as_posix(): path.read_bytes() for path in tiny_base_dir.rglob("*.*")}
    found, said = Bases(service), []
    with pytest.raises(BaseModelError, match="there is no model repository someone/tiny"):
        found.switch("someone/tiny")
    repository = server.add("someone/tiny", files)
    repository.tags["v1"] = repository.head
    assert "is on the Hub and not on this computer yet" in found.look("someone/tiny@v1")
    found.switch("someone/tiny@v1", said.append)
    assert said[0] == "Asking the Hub for someone/tiny ..."
    assert [text for text in said if re.fullmatch(r"Downloading someone/tiny: \d MB of \d MB", text)]
    assert found.look("someone/tiny@v1").startswith("someone/tiny is the base that is drawn with")
    assert Bases(found.current, "someone/tiny", {"revision": "v1"}).name == found.name
    server.stop()
    with pytest.raises(BaseModelError, match="the Hub cannot be reached"):
        found.switch("someone/other")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_memory_is_what_the_weights_take(tiny_base_dir: Path, dtype: torch.dtype) -> None:
    pipe = load_base(tiny_base_dir, dtype=dtype)
    taken = sum(p.nbytes for part in (pipe.unet, pipe.text_encoder, pipe.vae) for p in part.parameters())
    assert memory.bytes_in_memory(str(tiny_base_dir), dtype) == taken


def test_memory_of_rounded_weights_is_told_nearly() -> None:
    """Scales, and the few layers that stay whole, are not counted: less than two percent."""
    pipe = load_base("embedded", dtype=torch.float16, quantization="int8")
    parts = (pipe.unet, pipe.text_encoder, pipe.vae)
    taken = sum(one.nbytes for part in parts for one in (*part.parameters(), *part.buffers()))
    told = memory.bytes_in_memory("embedded", torch.float16, quantization="int8")
    assert told == pytest.approx(taken, rel=0.02)
    assert told < 0.9 * (memory.bytes_in_memory("embedded", torch.float16) or 0)
