"""What the controls of a start picture, a ControlNet and a refiner ask for."""

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

gradio = pytest.importorskip("gradio")

from gradio.data_classes import ImageData  # noqa: E402

from coeff_diffusion.images.control_picture import ControlPicture  # noqa: E402
from coeff_diffusion.images.drawing_settings import DrawRequest  # noqa: E402
from coeff_diffusion.images.errors import PictureError  # noqa: E402
from coeff_diffusion.images.photo import DatasetError  # noqa: E402
from coeff_diffusion.images.refiner_name import RefinerName  # noqa: E402
from coeff_diffusion.images.start_picture import StartPicture  # noqa: E402
from coeff_diffusion.inference.studio import Studio  # noqa: E402
from coeff_diffusion.service import StudioService  # noqa: E402
from coeff_diffusion.ui.from_picture import FromPicture, painted  # noqa: E402
from coeff_diffusion.ui.held_to import HeldTo  # noqa: E402
from coeff_diffusion.ui.refined import Refined  # noqa: E402


def layer(width: int, height: int, *box: int) -> Image.Image:
    found = Image.new("RGBA", (width, height))
    if box:
        found.paste((249, 115, 22, 255), box)
    return found


def test_what_is_painted_is_the_mask() -> None:
    drawn = {"layers": [layer(8, 8, 0, 0, 4, 8), layer(8, 8, 0, 0, 8, 2)]}
    found = painted(drawn, (8, 8))
    assert found is not None
    assert [found.getpixel(place) for place in ((1, 6), (6, 1), (6, 6))] == [255, 255, 0]
    scaled = painted(drawn, (16, 24))
    assert scaled is not None
    assert scaled.size == (16, 24)
    assert painted({"layers": [layer(8, 8)]}, (8, 8)) is painted({}, (8, 8)) is painted(None, (8, 8)) is None


def test_what_is_asked_for(service: StudioService, tmp_path: Path) -> None:
    photo, mask = Image.new("RGB", (16, 16), "red"), Image.new("L", (16, 16), 255)
    photo.save(tmp_path / "photo.png")
    mask.save(tmp_path / "mask.png")
    with gradio.Blocks():
        controls = FromPicture(service)
    empty = {controls.picture: None, controls.mask: None, controls.paint: None}
    values = {**empty, **dict.fromkeys(controls.fields.values(), 0.5)}
    assert controls.given(values) == {}
    values |= {controls.picture: str(tmp_path / "photo.png")}
    assert controls.given(values) == {"start": StartPicture(photo), "denoising_strength": 0.5}
    values |= {controls.mask: str(tmp_path / "mask.png")}
    assert controls.given(values)["start"] == StartPicture(photo, mask)
    values |= {controls.paint: {"layers": [layer(16, 16, 0, 0, 4, 4)]}}
    assert controls.given(values)["start"].mask.getpixel((8, 8)) == 0
    with pytest.raises(PictureError, match="a mask says what of a picture changes; put the picture in, too"):
        controls.given({**values, controls.picture: None})


def test_a_file_that_is_no_picture_is_said_by_its_name(service: StudioService, tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.touch()
    with gradio.Blocks():
        start, held = FromPicture(service), HeldTo(service)
    given: dict[Any, Any] = {start.paint: None, held.net: "user/canny"}
    for picture in (start.picture, start.mask, held.picture):  # gradio's own words would name parts of the page
        given[picture] = picture.preprocess(ImageData(path=str(broken), orig_name="broken.png"))
    for controls in (start, held):
        with pytest.raises(DatasetError, match=r"^broken\.png is not a readable picture \(it is an empty file\)"):
            controls.given(given)


def test_what_it_is_held_to(service: StudioService, tmp_path: Path) -> None:
    photo = Image.new("RGB", (16, 16), "red")
    photo.save(tmp_path / "edges.png")
    with gradio.Blocks():
        controls = HeldTo(service)
    values = {controls.picture: None, controls.net: " ", **dict.fromkeys(controls.fields.values(), 0.5)}
    assert controls.given(values) == {}
    values |= {controls.picture: str(tmp_path / "edges.png")}
    with pytest.raises(PictureError, match="give both, or take out the other"):
        controls.given(values)
    given = controls.given({**values, controls.net: "user/canny "})
    assert given["control"] == ControlPicture(photo, net="user/canny")
    assert (given["controlnet_conditioning_scale"], given["control_guidance_end"]) == (0.5, 0.005)  # of percent
    shown = controls.put(DrawRequest("a dog", **given))
    assert (shown[controls.picture], shown[controls.net]) == (photo, "user/canny")
    assert shown[controls.fields["control_guidance_end"]] == 0.5
    folder = ControlPicture(photo, net="canny", net_digits="0" * 12)  # whose place is not known
    assert controls.net not in controls.put(DrawRequest("a dog", control=folder))


def test_a_refiner_is_named_where_the_base_has_one(service: StudioService, tiny_xl_pipe: Any) -> None:
    with gradio.Blocks():
        assert Refined(service).box.visible is False
        service.studio = Studio(tiny_xl_pipe)
        controls = Refined(service)
    assert controls.box.visible is True
    assert controls.switch.value == 80
    assert controls.given({controls.name: " ", controls.switch: 70}) == {}
    given = controls.given({controls.name: "user/refiner ", controls.switch: 70})
    assert given == {"refiner": RefinerName("user/refiner"), "refiner_switch_at": 0.7}
    shown = controls.put(DrawRequest("a dog", **given))
    assert (shown[controls.name], shown[controls.switch]) == ("user/refiner", 70)
    assert controls.put(DrawRequest("a dog", refiner=RefinerName("my-refiner", "0" * 12)))[controls.name] == ""
