"""What a script can do with a running page, through the client that gradio ships."""

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from control_nets import make_net
from PIL import Image

gradio = pytest.importorskip("gradio")
gradio_client = pytest.importorskip("gradio_client")

from coeff_diffusion.images.control_picture import ControlPicture  # noqa: E402
from coeff_diffusion.images.files import read_parameters  # noqa: E402
from coeff_diffusion.images.start_picture import StartPicture  # noqa: E402
from coeff_diffusion.inference.outside import draw_request  # noqa: E402
from coeff_diffusion.inference.request import StudioError  # noqa: E402
from coeff_diffusion.inference.templates import Templates  # noqa: E402
from coeff_diffusion.service import StudioService, check_limits  # noqa: E402
from coeff_diffusion.ui import PageConfig  # noqa: E402
from coeff_diffusion.ui.page import build  # noqa: E402
from coeff_diffusion.ui.server import serve  # noqa: E402

DOCS = Path(__file__).parents[2] / "docs" / "studio.md"


@pytest.fixture
def address(service: StudioService) -> Iterator[str]:
    blocks = build(service)
    yield serve(blocks, PageConfig(port=0), [])
    blocks.close()


@pytest.fixture
def client(address: str, tmp_path: Path) -> Iterator[Any]:
    client = gradio_client.Client(address, verbose=False, download_files=str(tmp_path / "got"))
    yield client
    client.close()


def test_draw_and_subjects(client: Any, service: StudioService) -> None:
    assert [(one["name"], one["trigger"], one["problem"]) for one in client.predict(api_name="/subjects")] == [
        ("dog", "sks dog", ""),
        ("other-dog", "sks dog", ""),
    ]
    settings = {"seed": 5, "steps": 2, "batch_size": 2, "layers": {"self_attention": 0.5}, "end": 0.5}
    files, answer = client.predict("a sks dog, <b>red</b>", {"dog": 0.5}, settings, True, api_name="/draw")
    assert answer["seed"] == 5
    assert answer["files"] == ["00001-5-base.png", "00002-6-base.png", "00003-5.png", "00004-6.png"]
    found = read_parameters(files[3])
    assert (found.prompt, found.seed, found.subjects) == ("a sks dog, <b>red</b>", 6, {"dog": 0.5})
    with Image.open(files[3]) as picture:
        assert picture.size == service.studio.size
    files, answer = client.predict("a cat", None, {"steps": 1, "hires_scale": 2}, False, api_name="/draw")
    with Image.open(files[0]) as picture:
        assert picture.size == tuple(2 * side for side in service.studio.size)
    with pytest.raises(Exception, match="which has no refiner; draw without one"):
        client.predict("a cat", None, None, False, None, None, None, None, "user/refiner", api_name="/draw")


def test_draw_in_a_style(client: Any, service: StudioService, tmp_path: Path) -> None:
    (tmp_path / "styles.csv").write_text("name,prompt,negative_prompt\nOil,oil painting of {prompt},\n")
    service.drawings.templates = Templates(tmp_path)
    files, answer = client.predict("a cat", None, {"steps": 1}, False, styles=["Oil"], api_name="/draw")
    assert read_parameters(files[0]).prompt == "oil painting of a cat"
    assert "drawn as: oil painting of a cat" in answer["notes"]
    for styles, message in ((["Ink"], "there is no style 'Ink'"), ("Oil", "styles is 'Oil', expected a list of names")):
        with pytest.raises(gradio_client.exceptions.AppError, match=message):
            client.predict("a cat", None, {"steps": 1}, False, styles=styles, api_name="/draw")


def test_draw_from_a_picture(client: Any, service: StudioService, tmp_path: Path) -> None:
    photo, mask = Image.new("RGB", (16, 16), "red"), Image.new("L", (16, 16))
    mask.paste(255, (8, 0, 16, 16))
    photo.save(tmp_path / "photo.png")
    mask.save(tmp_path / "mask.png")
    given = {name: gradio_client.handle_file(tmp_path / f"{name}.png") for name in ("photo", "mask")}
    settings = {"steps": 2, "seed": 1, "mask_blur": 0}
    files, _ = client.predict("a cat", None, settings, False, given["photo"], given["mask"], api_name="/draw")
    assert StartPicture.read(Path(files[0])) == StartPicture(photo, mask)
    with Image.open(files[0]) as found:
        assert found.crop((0, 0, 8, 16)).getcolors() == [(128, (255, 0, 0))]
        assert found.crop((8, 0, 16, 16)).getcolors() != [(128, (255, 0, 0))]
    net = make_net(service.studio.pipe.unet, tmp_path / "edges")
    settings = {"steps": 2, "seed": 1, "controlnet_conditioning_scale": 0.5}
    files, _ = client.predict("a cat", None, settings, False, None, None, given["photo"], str(net), api_name="/draw")
    held = ControlPicture.read(Path(files[0]))
    assert held is not None
    assert held.image == photo
    assert read_parameters(files[0]).controlnet == "edges"
    with pytest.raises(Exception, match="holds the drawing to control_image; give both, or none"):
        client.predict("a cat", None, None, False, None, None, given["photo"], "", api_name="/draw")
    with pytest.raises(Exception, match="mask says what of init_image is drawn anew; give both"):
        client.predict("a cat", None, None, False, None, given["mask"], api_name="/draw")


@pytest.mark.parametrize(
    ("subjects", "settings", "sentence"),
    [
        ({"cat": 1}, None, "no subject 'cat'"),
        ({"../../etc/passwd": 1}, None, "no subject '../../etc/passwd'"),
        (["dog"], None, "expected a strength for each name"),
        ({"dog": "1"}, None, "the strength of 'dog' is '1', expected a number"),
        (None, {"stesp": 1}, "there is no setting 'stesp'; there are negative_prompt"),
        (None, {"steps": "20"}, "steps is '20', expected a number"),
        (None, {"steps": 2.5}, "steps is 2.5, expected a whole number"),
        (None, {"steps": 0}, "steps is 0, expected 1 to"),
        (None, {"width": 7}, "width is 7, expected a multiple of 8"),
        (None, {"width": 1 << 40}, "width is 1099511627776, expected at most"),
        (None, {"steps": 5000}, "steps is 5000, expected at most 100"),
        (None, {"batch_size": 1000}, "batch_size is 1000, expected at most"),
        (None, {"scheduler": "Magic"}, "Magic"),
        (None, {"gate": "maybe"}, "gate is 'maybe'"),
        (None, {"layers": {"sideways": 1}}, "no kind of layer 'sideways'"),
        (None, {"begin": 0.8, "end": 0.2}, "begin"),
    ],
)
def test_what_cannot_be_drawn_is_said(service: StudioService, subjects: Any, settings: Any, sentence: str) -> None:
    with pytest.raises(Exception, match=re.escape(sentence)):
        service.drawings.draw(check_limits(service.studio, draw_request("a dog", subjects, settings)), False)


def test_a_refusal_reaches_the_script(client: Any, tmp_path: Path) -> None:
    (tmp_path / "broken.png").touch()
    broken = gradio_client.handle_file(tmp_path / "broken.png")
    for name, given, sentence in (
        ("/draw", ("a cat", None, None, False, broken), "^broken.png is not a readable picture"),
        ("/train", (None, None, None, "quick", None), "the subject has no name"),
        ("/train", (None, "rex", "dog", "quick", ["x"]), r"settings is \['x'\], expected values by name"),
        ("/stop", (99,), "there is no training 99"),
        ("/base", (5,), "the base is 5, expected a text"),
    ):
        with pytest.raises(gradio_client.exceptions.AppError, match=sentence):
            client.predict(*given, api_name=name)
    with pytest.raises(gradio_client.exceptions.AppError, match="no subject 'cat' in"):
        client.predict("a cat", {"cat": 1}, None, False, api_name="/draw")
    with pytest.raises(StudioError):
        draw_request("a cat", {"cat": True}, None)


def test_the_script_in_the_docs_works(
    address: str, subject_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    (script,) = re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL)
    folder = tmp_path / "my-dog"
    folder.mkdir()
    for number, file in enumerate(sorted(subject_images.iterdir())):
        Image.open(file).convert("RGB").save(folder / f"{number}.png")
    monkeypatch.chdir(tmp_path)
    script = script.replace("http://127.0.0.1:7860", address).replace('"max_train_steps": 60', '"max_train_steps": 3')
    script = script.replace('"steps": 20', '"steps": 2').replace("time.sleep(1)", "time.sleep(0.1)")
    with contextlib.chdir(tmp_path):
        exec(compile(script, "docs/studio.md", "exec"), {})
    status_line = capsys.readouterr().out
    assert "done 3 of 3" in status_line
    assert "['dog', 'my-dog', 'other-dog']" in status_line
    assert len(list((tmp_path / "pictures").glob("*.png"))) == 2
