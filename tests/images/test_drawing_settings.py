"""A setting is written in one place, and everything that people meet of it follows."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from coeff_diffusion.commands.generate_config import drawing_flags
from coeff_diffusion.images.drawing_settings import LAYERS, SETTINGS

PACKAGE = Path(__file__).parents[2] / "coeff_diffusion"
PLACE = "    def acts_in("
MADE_UP = '''\
    softness: float = setting(0.25, text="Softness", low=0, high=1, label="Softness", hint="1 is softest")
    """How soft the picture is; left out, 0.25."""
'''
# What becomes of it, asked where the package has one field more.
QUESTIONS = """
import json
from pathlib import Path
from types import SimpleNamespace

import gradio as gr
from diffusers import DDIMScheduler
from PIL import Image

from coeff_diffusion.cli import parse
from coeff_diffusion.commands.generate_config import GenerateConfig, drawing_flags
from coeff_diffusion.commands.generate import _overridden
from coeff_diffusion.commands.config import InfoConfig
from coeff_diffusion.commands.info import picture_facts, show_info
from coeff_diffusion.images.files import save_picture
from coeff_diffusion.images.generation_info import Parameters, format_parameters, parse_parameters
from coeff_diffusion.inference.replay import Replay
from coeff_diffusion.inference.request import DrawRequest, disagreements, problems
from coeff_diffusion.service.picture_settings import _within_reach
from coeff_diffusion.inference.outside import draw_request
from coeff_diffusion.ui.draw_controls import plain_controls

config = parse("generate", GenerateConfig, ["--softness", "0.5"])
text = format_parameters(Parameters("a dog", steps=20, guidance_scale=7.5, softness=0.5))
path = save_picture(Image.new("RGB", (8, 8)), Path("a.png"), text)
shown = []
show_info(InfoConfig(str(path)), shown.append)
asked, _ = Replay(Path("a.png"), parse_parameters(text), ()).request()
pipe = SimpleNamespace(scheduler=DDIMScheduler())
usual = {"width": 64, "height": 64, "steps": 20, "guidance_scale": 7.5}
studio = SimpleNamespace(schedulers=["DDIM"], size=(64, 64), usual=usual, multiple=8, pipe=pipe)
with gr.Blocks():
    controls = plain_controls(SimpleNamespace(studio=studio))
made = controls["softness"]
near, notes = _within_reach(DrawRequest("a dog", softness=7.0), studio)
print(json.dumps({
    "flag": config.settings,
    "help": drawing_flags()["softness"][1],
    "override": _overridden(config, DrawRequest("a dog"), None)[0].softness,
    "text": text,
    "default text": format_parameters(Parameters("a dog", steps=20, guidance_scale=7.5)),
    "again": asked.softness,
    "json": picture_facts(path)["parameters"]["softness"],
    "shown": shown[0].splitlines(),
    "problems": problems(DrawRequest("a dog", width=8, height=8, softness=2.0), 8, 1000),
    "differ": disagreements([DrawRequest("a"), DrawRequest("a", softness=0.5)]),
    "script": draw_request("a dog", None, {"softness": 0.5}).softness,
    "control": [made.label, made.info, made.elem_id, made.minimum, made.maximum, made.value, made.step],
    "near": [near.softness, notes],
}))
"""


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    folder = tmp_path_factory.mktemp("softer")
    shutil.copytree(PACKAGE, folder / "coeff_diffusion", ignore=shutil.ignore_patterns("__pycache__", "*.safetensors"))
    source = folder / "coeff_diffusion" / "images" / "drawing_settings.py"
    before = source.read_text()
    assert before.count(PLACE) == 1
    source.write_text(before.replace(PLACE, f"{MADE_UP}\n{PLACE}"))
    done = subprocess.run([sys.executable, "-c", QUESTIONS], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def test_one_field_is_the_flag(answers: dict[str, object]) -> None:
    assert (answers["flag"], answers["override"]) == ({"softness": 0.5}, 0.5)
    assert answers["help"] == "How soft the picture is; left out, 0.25."


def test_one_field_is_the_text_of_a_picture_and_what_is_read_of_it(answers: dict[str, object]) -> None:
    assert answers["text"] == "a dog\nSteps: 20, CFG scale: 7.5, Softness: 0.5"
    assert answers["default text"] == "a dog\nSteps: 20, CFG scale: 7.5"
    assert answers["again"] == answers["json"] == 0.5
    assert "softness  0.5" in str(answers["shown"])


def test_one_field_is_the_range(answers: dict[str, object]) -> None:
    assert answers["problems"] == ["softness is 2.0, expected 0 to 1"]
    assert answers["near"] == [1, ["its softness was 7; here it is 1"]]
    assert answers["differ"] == ["softness is 0.25 and 0.5, expected the same for all pictures of a batch"]


def test_one_field_is_the_control_and_the_setting_of_a_script(answers: dict[str, object]) -> None:
    assert answers["control"] == ["Softness", "1 is softest", "draw-softness", 0, 1, 0.25, 0.05]
    assert answers["script"] == 0.5


def test_every_flag_has_a_help_and_a_name_of_its_own() -> None:
    flags = drawing_flags()
    assert len(flags) == len(SETTINGS) - 1 + len(LAYERS)
    assert all(help for _, help in flags.values())
    assert {"num_inference_steps", "act_from", "act_until", "mid_strength"} <= flags.keys()
