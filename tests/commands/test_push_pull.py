"""Push and pull through the real client of the Hub, against a tiny Hub on this computer."""

import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
import yaml
from hub_server import READER, WRITER, HubServer
from huggingface_hub import constants
from PIL import Image, PngImagePlugin

from coeff_diffusion import Coefficients, CoefficientsError, CoefficientsInfo
from coeff_diffusion import hub as hub_client
from coeff_diffusion.cli import main
from coeff_diffusion.commands import push_pull
from coeff_diffusion.commands.config import PullConfig, PushConfig
from coeff_diffusion.commands.info import collect_facts
from coeff_diffusion.commands.push_pull import local_folder, pull, push
from coeff_diffusion.hub import HubError, HubUnreachableError, find_token
from coeff_diffusion.images.files import read_parameters, save_picture
from coeff_diffusion.images.generation_info import Parameters, format_parameters
from coeff_diffusion.publishing.shareable import local_path_in
from coeff_diffusion.sources import shared_folder as layout
from coeff_diffusion.sources.image_card import chunks
from coeff_diffusion.sources.shared_folder import LayoutError, check, wanted
from coeff_diffusion.subject.adapter import Adapter
from coeff_diffusion.subject.adapter_kind import AdapterKind
from coeff_diffusion.subject.adapter_methods import DOWN, LORA_FILE, PEFT_CONFIG, PEFT_FILE, UP
from coeff_diffusion.subject.safetensors_file import FILE_NAME, MAX_FILE
from coeff_diffusion.training.config import TrainConfig
from coeff_diffusion.training.model_card import model_card
from coeff_diffusion.training.probe import Effect

DRAWN = Parameters(
    "a sks dog", seed=7, steps=20, guidance_scale=7.5, model="/data/anna/secret-base", subjects={"dog": 1.0}
)
REPO = "anna/my-dog"
# huggingface_hub's uploads by git LFS use a deprecated argument of httpx.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
WRONG = "hf_wrongwrongwrong"


def subject(**info: Any) -> Coefficients:
    known = {"name": "Rex", "trigger": "sks dog", "class_word": "dog", "instance_prompt": "a sks dog"}
    coeffs = {f"down_blocks.{i}.attn1": torch.randn(4, 4) for i in range(3)}
    return Coefficients(coeffs, {"text_encoder": torch.randn(1, 8)}, CoefficientsInfo(**{**known, **info}))


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """What a training run on a base of one's own leaves behind, private things included."""
    folder = tmp_path / "runs" / "rex"
    for name in ("samples", "checkpoints", "logs"):
        (folder / name).mkdir(parents=True)
    subject(base_model="secret-base", base_architecture="stable-diffusion-v1").save(folder / FILE_NAME)
    (folder / "config.yaml").write_text("instance_data_dir: /home/anna/photos\n")
    (folder / "checkpoints" / "step_000002.safetensors").write_bytes(b"x")
    (folder / "logs" / "events").write_bytes(b"x")
    (folder / "timeline.safetensors").write_bytes(b"x")
    for step in (1, 2):
        image = Image.new("RGB", (16, 16), (step, 0, 0))
        save_picture(image, folder / "samples" / f"step_00000{step}_0.png", format_parameters(DRAWN))
    image.save(folder / "samples" / "step_000002_1.png")  # does not say how it was drawn: perhaps a photo
    return folder


def uploaded(server: HubServer, repo: str = REPO) -> dict[str, bytes]:
    return {name: data for name, data in server.repositories[repo].files.items() if name != ".gitattributes"}


def tree(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def shared(**more: bytes) -> dict[str, bytes]:
    return {FILE_NAME: subject().to_bytes(), "README.md": b"---\nlicense: mit\n---\n", **more}


def png() -> bytes:
    return b"\x89PNG\r\n\x1a\n" + b"\0" * 30


def refused(run: Callable[..., Any], *arguments: Any) -> str:
    """The one line that an error is, after a look for tokens in it and in its traceback."""
    with pytest.raises(CoefficientsError) as caught:
        run(*arguments)
    text = "".join(traceback.format_exception(caught.value))
    assert not any(secret in text for secret in (WRITER, READER, WRONG))
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 500
    return message


# --- push -------------------------------------------------------------------------------------------------------------


def test_a_run_is_pushed_without_what_is_private(server: HubServer, run_folder: Path) -> None:
    lines: list[str] = []
    assert push(PushConfig(str(run_folder), REPO, license="CC0-1.0"), lines.append) == f"{server.url}/{REPO}"
    assert lines[-1] == f"{server.url}/{REPO}"
    files = uploaded(server)
    assert files.keys() == {FILE_NAME, "README.md", "samples/step_000002_0.png"}
    assert not server.repositories[REPO].private
    for data in files.values():
        for secret in (b"secret-base", b"anna", str(run_folder).encode(), WRITER.encode()):
            assert secret not in data
    front = yaml.safe_load(files["README.md"].decode().split("---\n")[1])
    assert front["widget"] == [{"text": "a sks dog", "output": {"url": "samples/step_000002_0.png"}}]
    assert (front["instance_prompt"], front["license"]) == ("a sks dog", "cc0-1.0")
    assert (front["pipeline_tag"], front["library_name"]) == ("text-to-image", "coeff-diffusion")
    assert "base_model" not in front
    assert sum(line.startswith("POST /api/models/anna/my-dog/commit") for line in server.log) == 1


def test_what_arrives_is_the_subject(server: HubServer, run_folder: Path, tmp_path: Path) -> None:
    mine = Coefficients.load(run_folder)
    push(PushConfig(str(run_folder), REPO))
    theirs = Coefficients.load(REPO)
    assert theirs.sha256 == mine.sha256
    assert theirs == mine.replace(info=replace(mine.info, base_model=""))
    assert pull(PullConfig(REPO, str(tmp_path / "rex"))) == tmp_path / "rex"
    assert tree(tmp_path / "rex") == uploaded(server)
    assert Coefficients.load(tmp_path / "rex") == theirs
    sample = tmp_path / "rex" / "samples" / "step_000002_0.png"
    assert read_parameters(sample) == replace(DRAWN, model=None)
    with Image.open(sample) as there, Image.open(run_folder / "samples" / "step_000002_0.png") as here:
        assert there.tobytes() == here.tobytes()


def test_a_dry_run_lists_exactly_what_is_uploaded(server: HubServer, run_folder: Path) -> None:
    lines: list[str] = []
    push(PushConfig(str(run_folder), REPO, dry_run=True), lines.append)
    assert server.log == []
    push(PushConfig(str(run_folder), REPO))
    sizes = {line.split()[2]: int(line.split()[0].replace(",", "")) for line in lines if " bytes  " in line}
    assert sizes == {name: len(data) for name, data in uploaded(server).items()}
    assert "left out samples/step_000002_1.png: it does not say how it was drawn, so it may be a photo" in lines


def test_a_second_push_updates(server: HubServer, run_folder: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    push(PushConfig(str(run_folder), REPO))
    push(PushConfig(str(run_folder), REPO), lines.append)
    assert "nothing has changed since the last push" in lines
    subject().save(tmp_path / "dog.safetensors")
    push(PushConfig(str(tmp_path / "dog.safetensors"), REPO, message="without pictures"))
    assert uploaded(server).keys() == {FILE_NAME, "README.md"}  # the pictures of the last version are gone
    assert len(server.repositories[REPO].history) == 3


def test_the_newer_way_to_upload(
    server: HubServer, run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What huggingface_hub does by default, where hf_xet is installed: it must come to the same commits."""
    pytest.importorskip("hf_xet")
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", False)
    server.all_regular = True
    said: list[str] = []
    for _ in range(2):
        push(PushConfig(str(run_folder), REPO), said.append)
    assert "nothing has changed since the last push" in said
    push(PushConfig(str(run_folder), str(tmp_path / "there")))
    assert uploaded(server) == tree(tmp_path / "there")
    subject().save(tmp_path / "dog.safetensors")
    push(PushConfig(str(tmp_path / "dog.safetensors"), REPO))
    assert uploaded(server).keys() == {FILE_NAME, "README.md"}
    assert len(server.repositories[REPO].history) == 3
    seen = hub_client.listing(REPO)
    server.repositories[REPO].commit({"theirs": b"x"})
    monkeypatch.setattr(push_pull, "listing", lambda *_, **__: seen)
    assert "is being changed by someone else" in refused(push, PushConfig(str(run_folder), REPO))


def test_a_lone_file_and_a_card_get_a_readme(server: HubServer, tmp_path: Path) -> None:
    subject(base_model="user/base", license="mit").save(tmp_path / "dog.safetensors")
    push(PushConfig(str(tmp_path / "dog.safetensors"), REPO))
    front = yaml.safe_load(uploaded(server)["README.md"].decode().split("---\n")[1])
    assert (front["base_model"], front["license"]) == ("user/base", "mit")
    card = tmp_path / "card.png"
    save_picture(Image.new("RGB", (8, 8)), card, format_parameters(DRAWN), chunks=chunks([subject(name="Bello")]))
    push(PushConfig(str(card), "anna/bello"))
    assert uploaded(server, "anna/bello").keys() == {FILE_NAME, "README.md", "samples/card.png"}
    assert Coefficients.load("anna/bello").info.name == "Bello"


def test_private_means_private(server: HubServer, run_folder: Path) -> None:
    push(PushConfig(str(run_folder), REPO, private=True))
    assert server.repositories[REPO].private
    server.add("anna/public", shared())
    before = uploaded(server, "anna/public")
    message = refused(push, PushConfig(str(run_folder), "anna/public", private=True))
    assert "anna/public is there and public" in message
    assert uploaded(server, "anna/public") == before


def test_other_repositories_are_left_alone(server: HubServer, run_folder: Path) -> None:
    server.add("anna/model", {"README.md": b"mine", "model.safetensors": b"x"})
    message = refused(push, PushConfig(str(run_folder), "anna/model"))
    assert "anna/model holds something else ('model.safetensors'); take another name" in message
    assert uploaded(server, "anna/model") == {"README.md": b"mine", "model.safetensors": b"x"}


def test_a_commit_of_someone_else_in_between_is_not_lost(
    server: HubServer, run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = server.add(REPO, shared())
    seen = hub_client.listing(REPO)
    repository.commit({"theirs": b"x"})
    monkeypatch.setattr(push_pull, "listing", lambda *_, **__: seen)
    assert "is being changed by someone else" in refused(push, PushConfig(str(run_folder), REPO))
    assert uploaded(server) == {"theirs": b"x"}


README = """---
license: mit
base_model: user/base
---

# My own words

![dog](samples/step_000002_0.png)
"""


def test_the_own_card_is_used(server: HubServer, run_folder: Path) -> None:
    (run_folder / "README.md").write_text(README)
    push(PushConfig(str(run_folder), REPO))
    assert uploaded(server)["README.md"].decode() == README
    push(PushConfig(str(run_folder), REPO, license="cc-by-4.0"))
    text = uploaded(server)["README.md"].decode()
    assert "license: cc-by-4.0" in text
    assert "# My own words" in text
    assert Coefficients.load(REPO).info.license == "cc-by-4.0"


def test_the_card_of_a_training_run_is_fit_for_others(server: HubServer, run_folder: Path) -> None:
    config = TrainConfig(instance_data_dir="/home/anna/photos", class_word="dog", token_learning_rate=1e-3).resolve()
    text = model_card(Coefficients.load(run_folder), config, Effect(0.2, 0.25, 0.2), ["samples/step_000002_0.png"])
    (run_folder / "README.md").write_text(text)
    push(PushConfig(str(run_folder), REPO))
    assert uploaded(server)["README.md"].decode() == text
    assert "the loss went from" in text
    assert "secret-base" not in text


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("---\nlicense", "license", "does not begin with a YAML head"),
        ("license: mit", "license: [mit", "expected"),
        ("user/base", "/data/base", "names '/data/base'"),
        ("user/base", "secret-base", "names the base 'secret-base'"),
        ("user/base", "[secret-base]", "names the base 'secret-base'"),
        ("user/base", "\n- secret-base", "names the base 'secret-base'"),
        ("My own words", "made from `secret-base`", "names the base 'secret-base'"),
        ("My own words", "see /home/anna/photos/1.png", "names '/home/anna'"),
        ("000002", "000001", "shows samples/step_000001_0.png, which is not there"),
    ],
)
def test_a_card_that_is_not_fit_for_others_is_made_anew(
    server: HubServer, run_folder: Path, old: str, new: str, reason: str
) -> None:
    (run_folder / "README.md").write_text(README.replace(old, new))
    lines: list[str] = []
    push(PushConfig(str(run_folder), REPO), lines.append)
    assert reason in next(line for line in lines if line.startswith("the card is made anew"))
    assert "A subject for Stable Diffusion" in uploaded(server)["README.md"].decode()


def test_paths_in_the_info_are_refused(server: HubServer, tmp_path: Path) -> None:
    for info in ({"name": "/home/anna/dogs"}, {"extra": {"from": [r"C:\Users\anna\dogs"]}}):
        subject(**info).save(tmp_path / "dog.safetensors")
        assert "holds the path" in refused(push, PushConfig(str(tmp_path / "dog.safetensors"), REPO))
    assert server.repositories == {}


def test_paths_are_told_from_addresses() -> None:
    home = f"({Path.home() / 'x'})"
    for text in ("in /home/anna/x", "`/Users/anna`", r"C:\Users\anna", r"\\nas\photos", "file:///home/anna", home):
        assert local_path_in(text), text
    for text in ("https://example.org/home/anna", "a/b", "user/base", "and/or", "samples/a.png", "1:2", r"\*bold\*"):
        assert local_path_in(text) is None, text


def test_pictures_lose_what_else_is_in_them(server: HubServer, run_folder: Path) -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("parameters", format_parameters(DRAWN))
    info.add_text("Author", "Anna")
    exif = Image.Exif()
    exif[0x8298] = "Copyright Anna"
    picture = run_folder / "samples" / "step_000002_0.png"
    Image.new("RGB", (8, 8)).save(picture, pnginfo=info, exif=exif, icc_profile=b"Anna's screen")
    (run_folder / "samples" / "step_000002_2.png").symlink_to(picture)
    push(PushConfig(str(run_folder), REPO))
    assert b"Anna" not in uploaded(server)["samples/step_000002_0.png"]
    assert "samples/step_000002_2.png" not in uploaded(server)


# --- pull and load ----------------------------------------------------------------------------------------------------


def test_only_the_files_of_a_subject_are_fetched(server: HubServer, tmp_path: Path) -> None:
    pictures = {"samples/a.png": png(), "samples/b.jpg": b"\xff\xd8\xff", "samples/c.webp": b"RIFF\1\0\0\0WEBP"}
    other = {"run.py": b"x", "samples/a.svg": b"x", "samples/deep/a.png": png(), "model.bin": b"x", "config.yaml": b"x"}
    in_eight_bits = subject().to_bytes(torch.int8)
    server.add(REPO, {**shared(**pictures), **other, FILE_NAME: in_eight_bits})
    pull(PullConfig(REPO, str(tmp_path / "dog")))
    assert tree(tmp_path / "dog").keys() == {FILE_NAME, "README.md", *pictures}
    assert Coefficients.load(tmp_path / "dog") == Coefficients.load(REPO) == Coefficients.from_bytes(in_eight_bits)
    assert not any(name in line for name in other for line in server.log)


def test_an_adapter_goes_where_its_subject_goes(server: HubServer, run_folder: Path, tmp_path: Path) -> None:
    factors = {"mid_block.attn1.to_q": {DOWN: torch.randn(2, 8).half(), UP: torch.randn(4, 2).half()}}
    alone = subject()
    joined = alone.joined(Adapter(AdapterKind("lora", 2), factors))
    joined.save(run_folder / FILE_NAME)
    push(PushConfig(str(run_folder), REPO))
    assert uploaded(server)[LORA_FILE] == (run_folder / LORA_FILE).read_bytes()
    assert Coefficients.load(REPO).adapter == joined.adapter
    assert collect_facts(REPO)["adapter"] == {
        "kind": "lora:2", "file": LORA_FILE, "sha256": joined.info.adapter_sha256, "values": 24,
        "size": (run_folder / LORA_FILE).stat().st_size,
    }  # fmt: skip
    pull(PullConfig(REPO, str(tmp_path / "pulled")))
    assert Coefficients.load(tmp_path / "pulled") == joined
    with pytest.raises(LayoutError, match="is not the adapter that the subject learned with"):
        check({**uploaded(server), LORA_FILE: b"another"}, "it")
    with pytest.raises(LayoutError, match=f"but {LORA_FILE} is not there"):
        check({FILE_NAME: uploaded(server)[FILE_NAME]}, "it")
    with pytest.raises(LayoutError, match=f"but {PEFT_FILE} is there"):
        check({**uploaded(server), PEFT_FILE: b"another"}, "it")
    kind = AdapterKind.parse("lokr:1")
    factors = {"mid_block.attn1.to_q": {name: torch.ones(shape) for name, shape in kind.shapes(4, 8).items()}}
    in_pefts_form = alone.joined(Adapter(kind, factors))
    (tmp_path / "peft").mkdir()
    in_pefts_form.save(tmp_path / "peft" / FILE_NAME)
    push(PushConfig(str(tmp_path / "peft"), REPO))
    there = uploaded(server)
    assert {PEFT_FILE, PEFT_CONFIG} <= there.keys()
    assert LORA_FILE not in there
    server.add(REPO, {**there, PEFT_CONFIG: b"of a stranger"})
    pull(PullConfig(REPO, str(tmp_path / "pulled"), overwrite=True))
    assert Coefficients.load(tmp_path / "pulled").adapter == in_pefts_form.adapter
    assert (tmp_path / "pulled" / PEFT_CONFIG).read_bytes() == kind.peft_config()
    assert collect_facts(str(tmp_path / "pulled"))["adapter"]["file"] == PEFT_FILE
    alone.save(tmp_path / "alone.safetensors")
    push(PushConfig(str(tmp_path / "alone.safetensors"), REPO))
    assert not uploaded(server).keys() & {LORA_FILE, PEFT_FILE, PEFT_CONFIG}


def test_revisions(server: HubServer, tmp_path: Path) -> None:
    first, second = subject(name="first"), subject(name="second")
    repository = server.add(REPO, {FILE_NAME: first.to_bytes()})
    repository.tags["v1"] = repository.head
    old = repository.head
    repository.commit({FILE_NAME: second.to_bytes()})
    assert Coefficients.load(REPO) == second
    assert Coefficients.load(f"{REPO}@v1") == Coefficients.load(f"{REPO}@{old}") == first
    pull(PullConfig(f"{REPO}@v1", str(tmp_path / "a")))
    pull(PullConfig(REPO, str(tmp_path / "b"), revision="v1"))
    assert Coefficients.load(tmp_path / "a") == Coefficients.load(tmp_path / "b") == first
    assert "has no revision 'v9'" in refused(Coefficients.load, f"{REPO}@v9")
    assert "'anna/my-dog@v1@v2' is no repository" in refused(
        pull, PullConfig(f"{REPO}@v1", str(tmp_path / "c"), revision="v2")
    )


def test_what_was_fetched_is_there_without_a_network(
    server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = server.add(REPO, shared())
    repository.tags["v1"] = repository.head
    online = Coefficients.load(REPO)
    Coefficients.load(f"{REPO}@v1")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert Coefficients.load(REPO) == Coefficients.load(f"{REPO}@v1") == online
    assert "switched off by HF_HUB_OFFLINE" in refused(Coefficients.load, "anna/other")
    assert "switched off by HF_HUB_OFFLINE" in refused(pull, PullConfig(REPO, str(tmp_path / "dog")))
    online.save(tmp_path / "dog.safetensors")
    assert "switched off by HF_HUB_OFFLINE" in refused(push, PushConfig(str(tmp_path / "dog.safetensors"), REPO))


TRICKS = [
    "../coefficients.safetensors", "samples/../../a.png", "/etc/passwd", "samples//a.png", "./a.png", "C:/a.png",
    "C:a.png", r"samples\a.png", r"\\server\share\a.png", "//server/share/a.png", "~/a.png", "samples/..", "a\0b.png",
    "samples/a\n.png", "a\u202eb.png", "..", "",
]  # fmt: skip


@pytest.mark.parametrize("name", TRICKS)
def test_names_that_lead_elsewhere_are_left_alone(server: HubServer, tmp_path: Path, name: str) -> None:
    ours = shared(**{"samples/a.png": png()})
    server.add(REPO, {**ours, name: png()})
    pull(PullConfig(REPO, str(tmp_path / "a" / "dog")))
    assert tree(tmp_path / "a") == {f"dog/{file}": data for file, data in ours.items()}
    fetched = {line.partition("/resolve/")[2].partition("/")[2] for line in server.log if "/resolve/" in line}
    assert fetched == {FILE_NAME, "README.md", "samples/a.png"}


@pytest.mark.parametrize(
    ("claims", "expected"),
    [
        ({FILE_NAME: MAX_FILE + 1}, "has 16777217 bytes, expected at most 16777216"),
        ({FILE_NAME: None}, "has an unknown number of bytes"),
        ({"README.md": 2**30}, "'README.md' has 1073741824 bytes"),
        ({"samples/a.png": 2**40}, "'samples/a.png' has 1099511627776 bytes"),
        ({"samples/a.png": -1}, "'samples/a.png' has -1 bytes"),
        ({f"samples/{i}.png": 10 for i in range(33)}, "there are 33 samples, expected at most 32"),
    ],
)
def test_sizes_are_known_before_anything_is_fetched(
    server: HubServer, tmp_path: Path, claims: dict[str, int | None], expected: str
) -> None:
    server.add(REPO, shared())
    server.claims |= claims
    assert expected in refused(pull, PullConfig(REPO, str(tmp_path / "dog")))
    assert not any("/resolve/" in line for line in server.log)
    if FILE_NAME in claims:
        assert expected in refused(Coefficients.load, REPO)
        assert not any("/resolve/" in line for line in server.log)


def test_a_listing_that_lies_is_found_out(server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server.add(REPO, shared(**{"samples/a.png": png() * 10}))
    server.claims["samples/a.png"] = 10
    monkeypatch.setattr(layout, "MAX_SAMPLE", 100)
    assert "'samples/a.png' has 101 bytes, expected at most 100" in refused(
        pull, PullConfig(REPO, str(tmp_path / "dog"))
    )
    assert not (tmp_path / "dog").exists()


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({FILE_NAME: b"\x80\x04."}, "a pickle, which can run any code"),
        ({FILE_NAME: subject().to_bytes()[:-4]}, "damaged"),
        ({"samples/a.png": b"<script>"}, "samples/a.png is not the kind of picture its name says"),
        ({"samples/a.webp": png()}, "samples/a.webp is not the kind of picture its name says"),
        ({"README.md": b"\xff\xfe"}, "README.md is not text"),
    ],
)
def test_nothing_appears_before_all_is_valid(
    server: HubServer, tmp_path: Path, files: dict[str, bytes], expected: str
) -> None:
    server.add(REPO, {**shared(), **files})
    assert expected in refused(pull, PullConfig(REPO, str(tmp_path / "a" / "dog")))
    assert not (tmp_path / "a").exists()


def test_a_repository_without_a_subject(server: HubServer, tmp_path: Path) -> None:
    server.add("anna/model", {"README.md": b"x"})
    assert f"holds no {FILE_NAME}, so it is not a subject" in refused(
        pull, PullConfig("anna/model", str(tmp_path / "dog"))
    )
    assert f"holds no {FILE_NAME}, so it is not a subject" in refused(Coefficients.load, "anna/model")


# --- folders ----------------------------------------------------------------------------------------------------------


def test_a_folder_works_as_a_repository_does(
    server: HubServer, run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    push(PushConfig(str(run_folder), REPO))
    assert push(PushConfig(str(run_folder), "./there/rex")) == "there/rex"
    assert tree(Path("there/rex")) == uploaded(server)
    asked = len(server.log)
    pull(PullConfig("there/rex", "back"))
    assert tree(Path("back")) == uploaded(server)
    assert Coefficients.load("there/rex") == Coefficients.load("back")
    # a pushed subject can be pushed on, and takes the place of what was there
    push(PushConfig("back", "./there/rex", overwrite=True))
    assert tree(Path("there/rex")) == uploaded(server)
    assert len(server.log) == asked
    assert sorted(path.name for path in Path("there").iterdir()) == ["rex"]


def test_folders_that_are_there_are_not_lost(run_folder: Path, tmp_path: Path) -> None:
    there = tmp_path / "there"
    push(PushConfig(str(run_folder), str(there)))
    before = tree(run_folder)
    assert "exists; take another name, or" in refused(pull, PullConfig(str(there), str(run_folder)))
    lost = "holds more than a subject, which would be lost"
    assert lost in refused(pull, PullConfig(str(there), str(run_folder), overwrite=True))
    assert lost in refused(push, PushConfig(str(there), str(run_folder), overwrite=True))
    assert "exists; take another name, or" in refused(push, PushConfig(str(run_folder), str(there)))
    assert "there is no use for --overwrite" in refused(push, PushConfig(str(there), REPO, overwrite=True))
    assert tree(run_folder) == before
    assert "exists; take another name, or" in refused(push, PushConfig(str(run_folder), str(run_folder)))
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(there)
    for target in ("file", "link"):
        assert "is no folder" in refused(pull, PullConfig(str(there), str(tmp_path / target), overwrite=True))

    layout.write_folder(shared(**{"samples/old.png": png()}), tmp_path / "old")
    for noise in (".DS_Store", "desktop.ini", "samples/Thumbs.db", "._README.md"):  # of systems that have shown it
        (tmp_path / "old" / noise).touch()
    pull(PullConfig(str(there), str(tmp_path / "old"), overwrite=True))
    assert tree(tmp_path / "old") == tree(there)


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layout.write_folder(shared(), tmp_path / "dog")
    before, rename = tree(tmp_path), Path.rename

    def fails(self: Path, target: Path) -> Path:
        if self.name == "new":
            raise OSError(28, "No space left on device")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fails)
    for name in ("dog", "cat"):
        with pytest.raises(OSError, match="No space"):
            layout.write_folder(shared(), tmp_path / name, replace=True)
    assert tree(tmp_path) == before
    assert [path.name for path in tmp_path.iterdir()] == ["dog"]


def test_links_in_a_folder_are_refused(tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(png())
    for number, name in enumerate([FILE_NAME, "README.md", "samples", "samples/a.png"]):
        folder = tmp_path / str(number)
        layout.write_folder(shared(), folder)
        if name.startswith("samples/"):
            (folder / "samples").mkdir()
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(tmp_path if name == "samples" else tmp_path / "secret.png")
        assert "symbolic link" in refused(pull, PullConfig(str(folder), str(tmp_path / "new")))
    assert not (tmp_path / "new").exists()


def test_what_only_the_hub_knows_is_refused_for_folders(run_folder: Path, tmp_path: Path) -> None:
    there = str(tmp_path / "there")
    assert "there is no use for --private and --message" in refused(
        push, PushConfig(str(run_folder), there, private=True, message="x")
    )
    assert "--revision only means something" in refused(pull, PullConfig(str(run_folder), there, revision="main"))
    assert "there is no folder" in refused(pull, PullConfig("./none", there))
    assert not Path(there).exists()


def test_folders_are_told_from_ids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out" / "dog").mkdir(parents=True)
    for text in ("./a/b", "../a", "/a/b", "~/a", r"a\b", "C:/a", "out/dog"):
        assert local_folder(text) is not None, text
    for text in ("user/dog", "user/dog@v1", "out/cat"):
        assert local_folder(text) is None, text


# --- refusals ---------------------------------------------------------------------------------------------------------


def test_tokens(server: HubServer, run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def attempt(**more: Any) -> str:
        return refused(push, PushConfig(str(run_folder), REPO, **more))

    monkeypatch.setenv("HF_TOKEN", WRONG)
    assert "does not know the token: it is mistyped, expired or revoked; log in with `hf auth login`" in attempt()
    monkeypatch.setenv("HF_TOKEN", READER)
    assert "the token does not allow this; make one that may write to 'anna'" in attempt()
    monkeypatch.delenv("HF_TOKEN")
    assert "there is no token; log in with `hf auth login`" in attempt()
    assert server.repositories == {}

    file = tmp_path / "secret.txt"
    for content, expected in {
        b"": "there is no token",
        f"{WRONG} {WRONG}".encode(): "the token is not one word of plain letters",
        f"{WRONG}é".encode(): "the token is not one word of plain letters",
        f"{WRONG}é".encode("latin-1"): "the token cannot be read (UnicodeDecodeError)",
    }.items():
        file.write_bytes(content)
        assert expected in attempt(token_file=str(file))
    assert "the token cannot be read (FileNotFoundError" in attempt(token_file=WRONG)
    file.write_text(f"{WRITER}\n")
    assert find_token(str(file)) == WRITER
    push(PushConfig(str(run_folder), REPO, token_file=str(file)))
    server.repositories[REPO].private = True
    assert "there is no model repository anna/my-dog that you may see" in refused(Coefficients.load, REPO)


def test_the_writer_of_another_repository(server: HubServer, run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server.add(REPO, shared())
    monkeypatch.setenv("HF_TOKEN", READER)
    assert "the token does not allow this" in refused(push, PushConfig(str(run_folder), REPO))


@pytest.mark.parametrize(
    ("status", "headers", "expected"),
    [
        (400, {"X-Error-Message": f"no {WRITER} \x1b[31m Bearer {READER}"}, "(status 400): no <token> [31m <token>"),
        (401, {}, "does not know the token"),
        (403, {"X-Error-Code": "GatedRepo"}, "is gated: ask for access on http"),
        (403, {"X-Error-Message": "Access to this resource is disabled."}, "Access to this resource is disabled."),
        (403, {}, "the token does not allow this"),
        (404, {"X-Error-Code": "RepoNotFound"}, "there is no model repository anna/my-dog that you may see"),
        (404, {}, "the Hub does not find anna/my-dog"),
        (409, {}, "is being changed by someone else"),
        (418, {}, "the Hub refuses the request for anna/my-dog (status 418)"),
        (429, {}, "takes no more requests for now"),
        (503, {}, "has a problem of its own (status 503)"),
        (412, {}, "is being changed by someone else"),
        (200, {}, "does not give or take anna/my-dog: Expecting value"),
    ],
)
def test_refusals_are_one_line(
    server: HubServer, tmp_path: Path, status: int, headers: dict[str, str], expected: str
) -> None:
    server.refuse["GET /api/models/"] = (status, headers, "<html>")
    assert expected in refused(pull, PullConfig(REPO, str(tmp_path / "dog")))
    assert f"there is no file {REPO}, and the Hub does not give it: " in refused(Coefficients.load, REPO)


def test_a_gated_repository_gives_no_files(server: HubServer, tmp_path: Path) -> None:
    server.add(REPO, shared(), gated=True)
    assert f"{REPO} is gated: ask for access on {server.url}/{REPO}" in refused(
        pull, PullConfig(REPO, str(tmp_path / "dog"))
    )


def test_what_the_hub_says_about_the_card(server: HubServer, run_folder: Path) -> None:
    message = refused(push, PushConfig(str(run_folder), REPO, license="not-a-license"))
    assert 'Invalid metadata in README.md. - "license" must be one of [mit, ...]' in message


def test_no_answer(server: HubServer, run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_client, "TIMEOUT", 0.3)
    server.delays["POST /api/repos/create"] = 0.8
    assert "the Hub cannot be reached (ReadTimeout)" in refused(push, PushConfig(str(run_folder), REPO))
    server.delays["GET /api/models/"] = 0.8
    assert "the Hub cannot be reached (ReadTimeout)" in refused(pull, PullConfig(REPO, str(tmp_path / "dog")))
    server.stop()
    with pytest.raises(HubUnreachableError):
        Coefficients.load(REPO)
    assert "the Hub cannot be reached (ConnectError); check the network" in refused(
        push, PushConfig(str(run_folder), REPO)
    )
    server.start()


def test_the_client_is_left_as_it_was(server: HubServer, run_folder: Path) -> None:
    before = huggingface_hub.get_session().timeout
    push(PushConfig(str(run_folder), REPO))
    refused(push, PushConfig(str(run_folder), REPO, license="not-a-license"))
    assert huggingface_hub.get_session().timeout == before


def test_ids_that_are_none(run_folder: Path, tmp_path: Path) -> None:
    for repo in ("dog", "a/b/c", "anna/", "-/x", "anna/my dog"):
        assert "is no repository of the Hub; expected an id like" in refused(
            push, PushConfig(str(run_folder), repo, dry_run=True)
        )
    assert "is no id of a repository" in refused(pull, PullConfig("anna/my--dog", str(tmp_path / "dog")))
    assert "is no id of a repository" in refused(Coefficients.load, "anna/my--dog")
    assert "give anna/dog alone" in refused(push, PushConfig(str(run_folder), "anna/dog@v1"))
    assert "there is no none; give a training run's folder" in refused(push, PushConfig("./none", REPO))


# --- the pieces -------------------------------------------------------------------------------------------------------


def test_what_belongs_to_a_shared_subject() -> None:
    names = ["samples/b.png", "README.md", "notes.txt", FILE_NAME, "samples/a.png"]
    assert set(wanted(dict.fromkeys(names, 10), "x")) == {*names} - {"notes.txt"}
    assert check(shared(), "x").info.name == "Rex"
    with pytest.raises(LayoutError, match=f"x holds no {FILE_NAME}"):
        check({}, "x")
    assert issubclass(HubError, ValueError)


def test_command_line(server: HubServer, run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["push", str(run_folder), REPO, "--private"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"{server.url}/{REPO}"
    assert main(["pull", REPO, "-o", str(tmp_path / "dog")]) == 0
    assert 'Rex (called up by "sks dog") is in' in capsys.readouterr().out
    assert main(["pull", REPO, "-o", str(tmp_path / "dog"), "--debug"]) == 2
    captured = capsys.readouterr()
    assert "exists; take another name" in captured.err
    assert WRITER not in captured.out + captured.err
