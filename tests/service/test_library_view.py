"""The library as the page shows it, and what comes in and goes out of it."""

import base64
import io
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from hub_server import READER, WRITER, HubServer
from PIL import Image
from subject_maker import of_stable_diffusion

from coeff_diffusion import Coefficients, CoefficientsError, describe_base, layer_heads
from coeff_diffusion.hub import HubError
from coeff_diffusion.images.files import save_picture
from coeff_diffusion.images.generation_info import Parameters, PictureError, format_parameters
from coeff_diffusion.inference.studio import Studio
from coeff_diffusion.service import ImportExport, LibraryView, PushRequest, ReplaceError
from coeff_diffusion.service import library_view as module
from coeff_diffusion.service.thumbnails import SIDE, greyed, stand_in, thumbnail
from coeff_diffusion.sources.image_card import chunks, extract
from coeff_diffusion.sources.library import Library, LibraryError
from coeff_diffusion.sources.qr_code import make_qr, read_qr
from coeff_diffusion.subject.adapter import Adapter
from coeff_diffusion.subject.adapter_kind import AdapterKind
from coeff_diffusion.subject.info import CoefficientsInfo
from coeff_diffusion.subject.safetensors_file import FILE_NAME, serialize

Make = Callable[..., Coefficients]
# huggingface_hub's uploads by git LFS use a deprecated argument of httpx.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.fixture
def library(tmp_path: Path) -> Library:
    library = Library(tmp_path / "subjects")
    library.folder.mkdir()
    return library


@pytest.fixture(scope="module")
def pipe(tiny_base_dir: Path) -> StableDiffusionPipeline:
    """One for all: nothing here draws with it or changes it."""
    return StableDiffusionPipeline.from_pretrained(tiny_base_dir)


@pytest.fixture(scope="module")
def new_subject(pipe: StableDiffusionPipeline) -> Make:
    """Makes a subject for `pipe`."""
    heads, base = layer_heads(pipe.unet), describe_base(pipe.unet)

    def make(name: str = "dog", trigger: str = "sks dog", seed: int = 1, **info: Any) -> Coefficients:
        generator = torch.Generator().manual_seed(seed)
        coeffs = {path: torch.randn(n, n, generator=generator) for path, n in heads.items()}
        return Coefficients(coeffs, info=CoefficientsInfo(name=name, trigger=trigger, **{**base, **info}))

    return make


@pytest.fixture
def library_view(pipe: StableDiffusionPipeline, library: Library) -> LibraryView:
    return LibraryView(Studio(pipe), library)


@pytest.fixture
def import_export(library_view: LibraryView) -> ImportExport:
    return ImportExport(library_view)


def put_run(
    library: Library, name: str, subject: Coefficients, samples: dict[int, tuple[str, Coefficients | None]]
) -> Path:
    """A run with a sample of a colour at each step, drawn with a subject."""
    run = library.folder / name
    (run / "samples").mkdir(parents=True)
    subject.save(run / FILE_NAME)
    for step, (colour, by) in samples.items():
        hashes = {"dog": by.sha256[:12]} if by else {}
        parameters = Parameters(
            "a sks dog", steps=2, seed=1, width=8, height=8, subjects=dict.fromkeys(hashes, 1.0), hashes=hashes
        )
        text = format_parameters(parameters)
        save_picture(Image.new("RGB", (32, 16), colour), run / "samples" / f"step_{step:06d}_0.png", text)
    return run


def colour(image: Image.Image) -> tuple[int, ...]:
    return image.getpixel((SIDE // 2, SIDE // 2))


# --- looking ----------------------------------------------------------------------------------------------------------


def test_what_a_card_says(library_view: LibraryView, library: Library, new_subject: Make) -> None:
    subject = new_subject(
        "Rex", "sks dog", class_word="dog", base_model="tiny", created="2025-01-31T12:00:00Z", license="cc0-1.0",
        train_steps=1_200, extra={"strength": 0.8},
    )  # fmt: skip
    subject.save(library.folder / "rex.safetensors")
    (entry,) = library_view.entries()
    assert (entry.name, entry.caption, entry.problem) == ("rex", "rex · sks dog", "")
    assert entry.facts() == {
        "Called up by": "sks dog",
        "Class word": "dog",
        "Named by its maker": "Rex",
        "Base": "tiny (custom)",
        "Strength": "0.8",
        "Training": "1,200 steps",
        "Licence": "cc0-1.0",
        "Date": "2025-01-31",
        "Size": f"{entry.path.stat().st_size:,} bytes",
    }
    Coefficients(dict(subject)).save(library.folder / "plain.safetensors")
    assert library_view.entry("plain").facts()["Called up by"] == "acts on every prompt"
    assert {entry.remark for entry in library_view.entries()} == {""}
    new_subject(base_model="user/tiny", base_sample=(9.0,) * 24).save(library.folder / "tuned.safetensors")
    tuned = library_view.entry("tuned")
    assert (tuned.caption, tuned.problem) == ("tuned · sks dog", "")
    assert re.match("The subject was trained on user/tiny, .* has other weights", tuned.remark)
    with pytest.raises(CoefficientsError, match="no subject 'cat' in"):
        library_view.entry("cat")


def test_an_adapter_is_weighed_with_its_subject(library_view: LibraryView, library: Library, new_subject: Make) -> None:
    factors = {"lora_A.weight": torch.ones(2, 32), "lora_B.weight": torch.ones(32, 2)}
    adapter = Adapter(AdapterKind.parse("lora:2"), {"mid_block.attentions.0.transformer_blocks.0.attn1.to_q": factors})
    (library.folder / "rex").mkdir(parents=True)
    file = library.folder / "rex" / FILE_NAME
    new_subject("rex", "sks dog").joined(adapter).save(file)
    own, beside = (path.stat().st_size for path in (file, file.with_name(adapter.kind.file)))
    (entry,) = library_view.entries()
    assert entry.facts()["Size"] == f"{own:,} bytes, and {beside:,} of its adapter"


def test_searching(library_view: LibraryView, library: Library, new_subject: Make) -> None:
    for name, trigger, word in [("Rex", "sks dog", "dog"), ("tom", "sks cat", "cat"), ("ÜBÜ", "zwx", "straße")]:
        new_subject(name, trigger, class_word=word).save(library.folder / f"{name}.safetensors")

    def found(text: str) -> list[str]:
        return [entry.name for entry in library_view.entries(text)]

    assert found("") == found("  ") == ["Rex", "tom", "ÜBÜ"]
    assert found("SKS") == ["Rex", "tom"]
    assert found("dog sks") == found("rex") == ["Rex"]
    assert found("übü") == found("STRASSE") == ["ÜBÜ"]
    assert found("[a-z") == found("x" * 9_000) == []


def test_damaged_and_foreign_ones_are_listed_with_the_reason(
    library_view: LibraryView, library: Library, new_subject: Make
) -> None:
    new_subject().save(library.folder / "a-good-one.safetensors")
    data = new_subject().to_bytes()
    (library.folder / "empty.safetensors").touch()
    (library.folder / "cut.safetensors").write_bytes(data[:-10])
    (library.folder / "changed.safetensors").write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    (library.folder / "pickle.safetensors").write_bytes(b"\x80\x02" + bytes(20))
    (library.folder / "folder.safetensors").mkdir()
    (library.folder / "gone.safetensors").symlink_to("nowhere")
    of_stable_diffusion(trigger="sks dog").save(library.folder / "foreign.safetensors")
    token = {"text_encoder": torch.ones(1, 8)}
    new_subject().replace(tokens=token).save(library.folder / "wide.safetensors")
    blocks = new_subject(blocks=("nowhere.*",))
    blocks.save(library.folder / "blocks.safetensors")
    entries = {entry.name: entry for entry in library_view.entries()}
    assert entries["a-good-one"].problem == ""
    for name, why in {
        "empty": "it is an empty file",
        "cut": "damaged",
        "changed": "incomplete, changed or damaged: the hash",
        "pickle": "a pickle, which can run any code",
        "folder": "the folder folder.safetensors holds no coefficients.safetensors",
        "gone": "is a symbolic link to nowhere",
    }.items():
        assert entries[name].problem.startswith("The file cannot be read: ")
        assert why in entries[name].problem
        assert str(library.folder) not in entries[name].problem
        assert entries[name].caption == f"{name} · cannot be read"
        assert entries[name].facts().keys() == {"Date", "Size"}
        assert library_view.picture(entries[name]).size == (SIDE, SIDE)
    for name, why in {
        "foreign": "the subject is for some/base (custom, 20 layers), this base is custom with 14 layers",
        "wide": "the subject's token has 8 channels, but the text_encoder of this base has 32",
        "blocks": "no attention layer matches",
    }.items():
        assert entries[name].problem.startswith("It does not fit the base that is loaded: ")
        assert why in entries[name].problem
        assert entries[name].caption == f"{name} · for another base"


def test_a_file_is_read_again_only_when_it_changed(
    library_view: LibraryView, library: Library, new_subject: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = library.folder / "dog.safetensors"
    new_subject("one").save(path)
    read: list[Any] = []
    load = module.open_subject
    monkeypatch.setattr(module, "open_subject", lambda source: read.append(source) or load(source))
    assert [entry.info.name for _ in range(3) for entry in library_view.entries()] == ["one"] * 3
    assert len(read) == 1
    new_subject("two", seed=2).save(path)
    assert library_view.entry("dog").info.name == "two"
    assert len(read) == 2


def test_the_list_does_not_wait_for_a_drawing(library: Library, tiny_pipe: Any, new_subject: Make) -> None:
    library_view = LibraryView(Studio(tiny_pipe), library)
    new_subject().save(library.folder / "dog.safetensors")
    tiny_pipe.unet = None  # what draws is nobody's business here once the shelf is made
    assert library_view.entry("dog").problem == ""


# --- pictures ---------------------------------------------------------------------------------------------------------


def test_the_picture_is_the_newest_sample_of_the_subject_as_it_is(
    library_view: LibraryView, library: Library, new_subject: Make
) -> None:
    then, now = new_subject(seed=1), new_subject(seed=2)
    run = put_run(library, "dog", now, {0: ("grey", then), 20: ("lime", now), 30: ("blue", then)})
    entry = library_view.entry("dog")
    assert library_view.sample(entry) == run / "samples" / "step_000020_0.png"
    assert colour(library_view.picture(entry)) == (0, 255, 0)
    (run / "samples" / "step_000020_0.png").unlink()
    assert colour(library_view.picture(entry)) == (0, 0, 255)
    (run / "samples" / "step_000030_0.png").write_bytes(b"no picture")
    assert colour(library_view.picture(entry)) == colour(stand_in())
    (run / "samples" / "step_000030_0.png").unlink()
    assert library_view.sample(entry) is None  # that of step 0 shows the base


def test_links_are_no_samples(library_view: LibraryView, library: Library, new_subject: Make, tmp_path: Path) -> None:
    run = put_run(library, "dog", new_subject(), {})
    secret = tmp_path / "secret.png"
    Image.new("RGB", (8, 8), "red").save(secret)
    (run / "samples" / "step_000010_0.png").symlink_to(secret)
    assert library_view.sample(library_view.entry("dog")) is None
    shutil.rmtree(run / "samples")
    (run / "samples").symlink_to(tmp_path)
    assert library_view.sample(library_view.entry("dog")) is None


def with_thumbnail(subject: Coefficients, value: str) -> bytes:
    data = subject.to_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return serialize(subject.named_tensors(), {**header["__metadata__"], "modelspec.thumbnail": value})


def test_a_lone_file_shows_the_thumbnail_in_it(library_view: LibraryView, library: Library, new_subject: Make) -> None:
    data = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(data, "PNG")
    encoded = base64.b64encode(data.getvalue()).decode()
    path = library.folder / "dog.safetensors"
    path.write_bytes(with_thumbnail(new_subject(), f"data:image/png;base64,{encoded}"))
    assert colour(library_view.picture(library_view.entry("dog"))) == (255, 0, 0)
    for number, wrong in enumerate(["", "x", "data:image/png;base64,%", f"data:image/svg+xml;base64,{encoded}"]):
        path = library.folder / f"{number}.safetensors"
        path.write_bytes(with_thumbnail(new_subject(), wrong))
        assert library_view.entry(path.stem).problem == ""
        assert library_view.picture(library_view.entry(path.stem)) == stand_in()


def test_bombs_are_not_decoded(tmp_path: Path, new_subject: Make) -> None:
    bomb, subject = tmp_path / "bomb.png", tmp_path / "dog.safetensors"
    Image.new("1", (4_100, 4_100)).save(bomb)
    new_subject().save(subject)
    assert thumbnail(subject, bomb) == stand_in()


def test_what_cannot_be_used_is_grey() -> None:
    grey = greyed(Image.new("RGB", (SIDE, SIDE), "red"))
    assert len(set(colour(grey))) == 1
    assert grey.size == (SIDE, SIDE)


# --- moving -----------------------------------------------------------------------------------------------------------


def test_what_is_being_trained_stays(pipe: StableDiffusionPipeline, library: Library, new_subject: Make) -> None:
    training = {"dog"}
    library_view = LibraryView(Studio(pipe), library, writing=training.__contains__)
    put_run(library, "dog", new_subject(), {})
    for move in (library_view.delete, lambda name: library_view.rename(name, "x")):
        with pytest.raises(LibraryError, match="'dog' is being trained; stop its training first"):
            move("dog")
    training.clear()
    assert library_view.rename("dog", "rex") == "rex"
    assert library_view.delete("rex").name == "rex"
    assert library_view.entries() == []


# --- coming in --------------------------------------------------------------------------------------------------------


def test_importing_files_cards_and_codes(import_export: ImportExport, tmp_path: Path, new_subject: Make) -> None:
    dog, cat = new_subject("Rex"), new_subject("", "sks cat", seed=2)
    dog.save(tmp_path / "my dog.safetensors")
    dog.scaled(0.5).save(tmp_path / FILE_NAME)
    both = [dog.scaled(0.6), cat]
    save_picture(Image.new("RGB", (8, 8)), tmp_path / "00001-7.png", chunks=chunks(both))
    code = of_stable_diffusion(name="code", trigger="sks code")
    make_qr(code).convert("RGB").save(tmp_path / "photo.jpg")
    assert import_export.add(tmp_path / "my dog.safetensors") == ["my-dog"]
    assert import_export.add(tmp_path / FILE_NAME) == ["Rex"]
    assert import_export.add(tmp_path / "00001-7.png") == ["Rex-2", "sks-cat"]
    assert import_export.add(tmp_path / "photo.jpg") == ["code"]
    assert Coefficients.load(import_export.library.path("sks-cat")) == cat
    assert len(import_export.library_view.entries()) == 5
    for name, there in (("my dog.safetensors", "b.png"), ("00001-7.png", "c.safetensors"), ("photo.jpg", "d.ckpt")):
        (tmp_path / name).rename(tmp_path / there)
    assert import_export.add(tmp_path / "b.png") == ["my-dog"]  # they are there already
    assert import_export.add(tmp_path / "c.safetensors") == ["Rex-2", "sks-cat"]
    assert import_export.add(tmp_path / "d.ckpt") == ["code"]
    assert len(import_export.library_view.entries()) == 5


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("x.safetensors", b"", "x.safetensors: not a subject: it is an empty file"),
        ("x.ckpt", b"PK\x03\x04" + bytes(20), "it is a zip archive; .* unpack it"),
        ("x.png", b"", "x.png: not a subject: it is an empty file"),
        ("x.jpg", b"x" * 99, "x.jpg: not a subject: it is a text"),
        (f"{'n' * 240}.safetensors", b"x", "it is a text"),
    ],
)
def test_what_is_no_subject_is_refused(
    import_export: ImportExport, tmp_path: Path, name: str, content: bytes, why: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CoefficientsError, match=why) as error:
        import_export.add(tmp_path / name)
    assert str(tmp_path) not in str(error.value)
    assert import_export.library.find() == {}


@pytest.mark.parametrize(
    "name",
    ["coefficients (1).safetensors", "coefficients(2).safetensors", "coefficients - Copy.safetensors",
     "Coefficients copy 2.safetensors", "coefficients-1.safetensors", "coefficients.safetensors.bin"],
)  # fmt: skip
def test_a_second_download_is_called_as_its_subject_is(
    import_export: ImportExport, tmp_path: Path, new_subject: Make, name: str
) -> None:
    new_subject("Rex").save(tmp_path / name)
    assert import_export.add(tmp_path / name) == ["Rex"]
    new_subject("Tim", seed=3).save(tmp_path / name)
    assert import_export.library.add(tmp_path / name) == "Tim"  # as the tab Draw does
    new_subject("Rex", seed=2).save(tmp_path / "coefficients of Tom.safetensors")
    assert import_export.add(tmp_path / "coefficients of Tom.safetensors") == ["coefficients-of-Tom"]


def test_a_picture_without_a_subject_is_refused(import_export: ImportExport, tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "plain.png")
    with pytest.raises(CoefficientsError, match=r"^plain.png carries no subject in a coEf chunk, and no QR code"):
        import_export.add(tmp_path / "plain.png")


def test_pulling_from_the_hub(import_export: ImportExport, server: HubServer, new_subject: Make) -> None:
    server.add("anna/my-dog", {FILE_NAME: new_subject().to_bytes(), "README.md": b"# dog", "notes.txt": b"?"})
    assert [import_export.pull(" anna/my-dog "), import_export.pull("anna/my-dog")] == ["my-dog", "my-dog-2"]
    assert sorted(path.name for path in (import_export.library.folder / "my-dog").iterdir()) == ["README.md", FILE_NAME]
    assert import_export.library_view.entry("my-dog").problem == ""


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("", "give an id on the Hub"),
        ("n" * 9_000, "this has 9,000 characters"),
        ("no-id", "is no repository of the Hub"),
        ("a b/c", "is no repository of the Hub"),
        ("a/b\0", "is no repository of the Hub"),
        ("<b>/x", "is no repository of the Hub"),
        ("anna/nothing", "there is no model repository anna/nothing that you may see"),
        ("../..", "holds no coefficients.safetensors"),
        ("~nobody-of-this-name/x", "there is no folder ~nobody-of-this-name/x"),
        ("./no/such/folder", "there is no folder"),
    ],
)
def test_what_cannot_be_pulled(import_export: ImportExport, server: HubServer, source: str, why: str) -> None:
    with pytest.raises(CoefficientsError, match=why) as error:
        import_export.pull(source)
    assert len(str(error.value)) < 400
    assert list(import_export.library.folder.iterdir()) == []


def test_pulling_from_a_folder(import_export: ImportExport, tmp_path: Path, new_subject: Make) -> None:
    source = tmp_path / "shared dog"
    source.mkdir()
    new_subject().save(source / FILE_NAME)
    (source / "secret.txt").touch()
    assert import_export.pull(str(source)) == "shared-dog"
    assert [path.name for path in (import_export.library.folder / "shared-dog").iterdir()] == [FILE_NAME]
    import_export.folders = False
    with pytest.raises(HubError, match="a folder cannot be named on this page"):
        import_export.pull(str(source))


# --- going out --------------------------------------------------------------------------------------------------------


def test_exporting_the_file(import_export: ImportExport, library: Library, new_subject: Make) -> None:
    new_subject().save(library.folder / "a <dog>.safetensors")
    export = import_export.file("a <dog>")
    assert (export.file_name, export.content) == ("a-dog.safetensors", new_subject().to_bytes())
    (library.folder / "bad.safetensors").touch()
    for out in (import_export.file, import_export.card, import_export.qr):
        with pytest.raises(CoefficientsError, match="'bad' cannot be read: not a subject: it is an empty file"):
            out("bad")


def test_a_card_is_made_of_the_newest_sample(import_export: ImportExport, library: Library, new_subject: Make) -> None:
    put_run(library, "dog", new_subject(), {10: ("red", None), 20: ("lime", new_subject())})
    export = import_export.card("dog")
    assert export.file_name == "dog-card.png"
    assert extract(export.content) == [new_subject()]
    assert Image.open(io.BytesIO(export.content)).getpixel((0, 0)) == (0, 255, 0)
    assert len(export.notes) == 1
    assert export.notes[0].startswith("dog-card.png carries 'dog'")


def test_a_card_is_made_of_any_picture(
    import_export: ImportExport, library: Library, new_subject: Make, tmp_path: Path
) -> None:
    new_subject().save(library.folder / "dog.safetensors")
    with pytest.raises(PictureError, match="there is no sample of 'dog' to make a card of; choose a picture"):
        import_export.card("dog")
    photo = tmp_path / "photo.jpg"
    Image.new("RGB", (16, 8), "red").save(photo)
    assert extract(import_export.card("dog", photo).content) == [new_subject()]
    photo.write_bytes(b"no picture")
    with pytest.raises(PictureError, match=r"^photo.jpg is not a readable picture"):
        import_export.card("dog", photo)


def test_a_qr_code_says_how_much_it_rounds(
    import_export: ImportExport, library: Library, new_subject: Make, tmp_path: Path
) -> None:
    of_stable_diffusion(name="dog", trigger="sks dog").save(library.folder / "dog.safetensors")
    export = import_export.qr("dog")
    assert export.file_name == "dog-qr.png"
    assert export.notes[0].startswith("dog-qr.png: ")
    assert "rounded to 8 bits: no value changes by more than" in export.notes[1]
    (tmp_path / "code.png").write_bytes(export.content)
    found = read_qr(tmp_path / "code.png")
    assert found is not None
    assert found.info.trigger == "sks dog"
    photo = tmp_path / "photo.png"
    Image.new("RGB", (16, 8), "red").save(photo)
    assert len(import_export.qr("dog", photo).content) != len(export.content)
    new_subject().save(library.folder / "tiny.safetensors")
    with pytest.raises(CoefficientsError, match="base"):
        import_export.qr("tiny")


def test_pushing_asks_before_it_replaces(
    import_export: ImportExport, server: HubServer, library: Library, new_subject: Make
) -> None:
    put_run(library, "dog", new_subject(), {10: ("red", new_subject())})
    lines = import_export.push(PushRequest("dog", "anna/my-dog", private=True))
    assert lines[-1] == f"{server.url}/anna/my-dog"
    assert server.repositories["anna/my-dog"].private
    assert set(server.repositories["anna/my-dog"].files) >= {FILE_NAME, "README.md", "samples/step_000010_0.png"}
    new_subject(seed=2).save(library.folder / "other.safetensors")
    writes = len([line for line in server.log if not line.startswith(("GET", "HEAD"))])
    with pytest.raises(ReplaceError, match="anna/my-dog holds a subject already"):
        import_export.push(PushRequest("other", "anna/my-dog", private=True))
    assert len([line for line in server.log if not line.startswith(("GET", "HEAD"))]) == writes
    import_export.push(PushRequest("other", "anna/my-dog", private=True, replace=True))
    assert server.repositories["anna/my-dog"].files[FILE_NAME] == new_subject(seed=2).to_bytes()


def test_a_typed_token_is_used_and_kept_nowhere(
    import_export: ImportExport, server: HubServer, library: Library, new_subject: Make, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    new_subject().save(library.folder / "dog.safetensors")
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(HubError, match="there is no token: type one, or log in"):
        import_export.push(PushRequest("dog", "anna/my-dog"))
    request = PushRequest("dog", "anna/my-dog", token=f" {WRITER} ")
    assert WRITER not in repr(request)
    lines = import_export.push(request)
    assert server.repositories["anna/my-dog"].files[FILE_NAME] == new_subject().to_bytes()
    problems = []
    for token in (READER, "hf_wrongwrongwrong", "two words", "t" * 9_000, "ü"):
        with pytest.raises(HubError) as error:
            import_export.push(PushRequest("dog", "anna/my-dog", token=token, replace=True))
        problems.append(str(error.value))
        assert token not in problems[-1]
    assert problems[0].startswith("the token does not allow this")
    assert problems[1].startswith("the Hub does not know the token")
    assert problems[2].startswith("the token is not one word of plain letters")
    kept = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert all(WRITER.encode() not in content for content in kept)
    assert WRITER not in "\n".join(lines) + "".join(capfd.readouterr()) + caplog.text


@pytest.mark.parametrize(
    ("repo", "why"),
    [
        ("", "give an id on the Hub"),
        ("x" * 9_000, "this has 9,000 characters"),
        ("../elsewhere", "is no repository of the Hub"),
        ("/tmp/dog", "is no repository of the Hub"),
        ("~/dog", "is no repository of the Hub"),
        ("there/dog", "is a folder of this computer"),
        ("anna/dog@v1", "a subject is pushed to the main branch"),
    ],
)
def test_where_nothing_is_pushed(
    import_export: ImportExport, server: HubServer, library: Library, new_subject: Make, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, repo: str, why: str,
) -> None:  # fmt: skip
    new_subject().save(library.folder / "dog.safetensors")
    (tmp_path / "there" / "dog").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(HubError, match=why):
        import_export.push(PushRequest("dog", repo))
    assert not any(line.startswith(("POST", "PUT")) for line in server.log)
    assert list((tmp_path / "there" / "dog").iterdir()) == []
