"""What other programs write of their pictures is read as what it means, and what is not taken is named."""

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from mutated_drawings import drawings
from mutated_files import EXAMPLES
from other_programs import A1111, COMFY, FOOOCUS, INVOKE, NEVER_IN_A_PROMPT, NODES, SWARM, TEXTS, picture, workflow

from coeff_diffusion.images.files import find_drawing
from coeff_diffusion.images.generation_info import Parameters, PictureError
from coeff_diffusion.images.sampler_names import SCHEDULES, SOLVERS, WITHOUT, find_sampler
from coeff_diffusion.inference.replay import Replay
from coeff_diffusion.inference.request import StudioError
from coeff_diffusion.inference.samplers import SCHEDULERS

# By program, what changes pixels and is not taken.
NAMED = {
    "A1111": ["Clip skip 2", "Variation seed 9", "Variation seed strength 0.1", "Lora hashes a: 1, b: 2",
              "ADetailer model face_yolov8n.pt"],
    "SwarmUI": ["variationseed 3", "variationseedstrength 0.1", "loras"],
    "Fooocus": ["styles", "sharpness 2.0", "adm_guidance (1.5, 0.8, 0.3)", "lora_combined_1 a.safetensors : 0.1"],
    "ComfyUI": ["node LoraLoader 0.8, 0.8, x.safetensors"],
    "ComfyUI's editor": ["node LoraLoader 0.8, 0.8, x.safetensors"],
    "InvokeAI": ["loras"],
    "InvokeAI 2": ["perlin 0.2"],
    "InvokeAI 1": ["U 2.0"],
    "NovelAI": ["sm true"],
}  # fmt: skip


def read(**texts: Any) -> Replay:
    found = find_drawing(picture(texts))
    assert found is not None
    return Replay(Path("a.png"), found, ())


@pytest.mark.parametrize("program", TEXTS)
def test_settings_of_every_program(program: str) -> None:
    replay = read(**TEXTS[program])
    p, old = replay.parameters, "InvokeAI " in program
    assert (p.prompt, p.negative_prompt) == ("a cat on grass", "" if old else "blurry")
    assert (p.seed, p.steps, p.guidance_scale, p.width, p.height) == (7, 8, 7.0, 128, 128)
    assert (p.hires_scale, p.hires_denoising_strength) == ((2.0, 0.5) if program == "A1111" else (1.0, None))
    assert p.scheduler == ("DPM++ 2M" if old else "DPM++ 2M Karras")
    assert p.guidance_rescale == (0.5 if program in ("InvokeAI", "NovelAI") else None)
    assert (p.model or "").rpartition("/")[2] == ("" if program in ("InvokeAI 1", "NovelAI") else "mymodel")
    (note,) = replay.notes
    assert sorted(note.partition(": ")[2].split(", ")) == sorted(", ".join(NAMED[program]).split(", "))


@pytest.mark.parametrize("program", TEXTS)
@pytest.mark.parametrize("odd", ["many", None, [1], {"a": 1}, True, "9" * 5_000, float("nan")])
def test_one_odd_field_spoils_no_other(program: str, odd: Any) -> None:
    texts = copy.deepcopy(TEXTS[program])
    for data in [data for data in texts.values() if isinstance(data, dict)]:
        for inner in (data, *(one for one in data.values() if isinstance(one, dict))):
            for one in (inner, inner.get("inputs"), inner.get("image")):
                if isinstance(one, dict) and "steps" in one:
                    one["steps"] = odd
    if all(isinstance(text, str) for text in texts.values()):
        texts = {key: text.replace("Steps: 8", f"Steps: {odd}") for key, text in texts.items()}
    found = find_drawing(picture(texts))
    assert found is not None
    assert (found.prompt, found.seed) == ("a cat on grass", 7)


@pytest.mark.parametrize(
    ("text", "beside"),
    [
        ("a cat\nNegative prompt: blurry\nFIELDS\n\nADetailer model: face, ADetailer prompt: x, y: z", 2),
        ('a cat\nNegative prompt: blurry\nFIELDS, Wildcard prompt: "a\n__b__", Version: 1', 1),
        ("a cat\nNegative prompt: blurry\nFIELDS\nposted with love, and\nno fields: at all", 1),
        ("a cat\nNegative prompt: blurry FIELDS", 0),
        ("a cat Negative prompt: blurry FIELDS, Version: 1", 0),
    ],
)
def test_fields_that_are_no_line_of_their_own_are_never_a_prompt(text: str, beside: int) -> None:
    """Extensions write line breaks into their values and lines behind the last one, sites put all into one line."""
    fields = "Steps: 8, Sampler: Euler a, CFG scale: 7, Seed: 7, Size: 128x128"
    replay = read(parameters=text.replace("FIELDS", fields))
    p = replay.parameters
    assert (p.prompt, p.negative_prompt) == ("a cat", "blurry")
    assert (p.steps, p.seed, p.guidance_scale, p.width, p.height, p.scheduler) == (8, 7, 7.0, 128, 128, "Euler a")
    assert len(p.extra) >= beside


def test_values_that_make_no_sense_are_said() -> None:
    replay = read(parameters="a cat\nSteps: many, Size: 3, CFG scale: x, Seed: 1.5, Sampler: LMS Karras, Model: m")
    assert replay.parameters.scheduler == "LMS Karras"
    assert replay.notes == [
        "it does not say its seed, steps, guidance, size",
        "its Size is '3', expected two numbers as in 512x512",
        "its Steps is 'many', expected a number",
        "its CFG scale is 'x', expected a number",
        "its Seed is '1.5', expected a number",
    ]
    replay = read(parameters={"prompt": {"a": 1}, "steps": 8, "Gate": "x", "seed": "\ud800", "loras": []})
    assert replay.parameters.prompt == ""
    assert "its Gate is left out" in replay.notes


@pytest.mark.parametrize(
    ("text", "prompt"),
    [
        ('{"a": "b"}\nSteps: 1, Seed: 2, Size: 8x8', '{"a": "b"}'),
        ("{red|blue} cat\nSteps: 1, Seed: 2, Size: 8x8", "{red|blue} cat"),
        ("{masterpiece}, a cat", "{masterpiece}, a cat"),
        ("[a:b:0.5] cat", "[a:b:0.5] cat"),
    ],
)
def test_prompts_may_have_braces(text: str, prompt: str) -> None:
    assert read(parameters=text).parameters.prompt == prompt


@pytest.mark.parametrize(
    "texts",
    [
        {"parameters": json.dumps(SWARM)[:-5]},
        {"parameters": json.dumps(FOOOCUS, indent=1)[:90]},
        {"parameters": {"unheard": 1}},
        {"parameters": json.dumps([FOOOCUS])},
        {"invokeai_metadata": json.dumps(INVOKE)[:-5]},
        {"invokeai_metadata": "[" * 50_000},
    ],
)
def test_damaged_and_unknown_json_is_refused_and_never_drawn(texts: dict[str, Any]) -> None:
    with pytest.raises(PictureError, match="parameters cannot be read: .*JSON"):
        find_drawing(picture(texts))


@pytest.mark.parametrize(
    "texts",
    [{}, {"Comment": "my holidays"}, {"Comment": {"a": 1}}, {"prompt": "a cat"}, {"prompt": {"1": {"inputs": {}}}},
     {"workflow": {"nodes": [], "links": []}}, {"workflow": {"nodes": 1}}, {"Title": A1111}],
)  # fmt: skip
def test_pictures_that_say_nothing(texts: dict[str, Any]) -> None:
    assert find_drawing(picture(texts)) is None


def test_the_settings_of_lines_come_before_those_of_a_graph() -> None:
    assert read(prompt=COMFY, parameters=A1111.replace("Seed: 7", "Seed: 8")).parameters.seed == 8


# --- graphs -----------------------------------------------------------------------------------------------------------


def graph(**changes: Any) -> dict[str, Any]:
    """The graph with some nodes put in place of others or beside them."""
    return {**copy.deepcopy(COMFY), **{key.lstrip("n"): node for key, node in changes.items()}}


def node(kind: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs}


def test_custom_samplers() -> None:
    changed = graph(
        n3=node("SamplerCustomAdvanced", noise=["20", 0], guider=["21", 0], sampler=["22", 0], sigmas=["23", 0],
                latent_image=["5", 0]),
        n20=node("RandomNoise", noise_seed=7),
        n21=node("CFGGuider", cfg=7.0, model=["4", 0], positive=["6", 0], negative=["7", 0]),
        n22=node("KSamplerSelect", sampler_name="dpmpp_2m"),
        n23=node("BasicScheduler", scheduler="karras", steps=8, denoise=1, model=["4", 0]),
        n6=node("CLIPTextEncode", text="a cat on grass", clip=["4", 1]),
        n7=node("CLIPTextEncode", text="blurry", clip=["4", 1]),
    )  # fmt: skip
    replay, expected = read(prompt=changed), read(prompt=COMFY).parameters
    assert replay.notes == []
    assert replay.parameters == Parameters(**{**vars(expected), "extra": {}})


def test_values_that_come_from_nodes() -> None:
    changed = graph(
        n20=node("Seed (rgthree)", seed=7),
        n21=node("PrimitiveInt", value=8),
        n22=node("StringConcatenate", string_a="a cat", string_b=["23", 0], delimiter=" "),
        n23=node("PrimitiveString", value="on grass"),
    )
    changed["3"]["inputs"] |= {"seed": ["20", 0], "steps": ["21", 0]}
    changed["6"]["inputs"]["text"] = ["22", 0]
    replay = read(prompt=changed)
    p = replay.parameters
    assert (p.seed, p.steps, p.prompt, p.negative_prompt) == (7, 8, "a cat, on grass", "blurry")
    assert replay.notes[0] == "its prompt is put together of 2 texts; they are joined by commas"
    assert "node StringConcatenate" in replay.notes[1]


def test_what_draws_on_is_said_and_the_first_sampler_counts() -> None:
    changed = graph(
        n30=node("LatentUpscaleBy", upscale_method="bislerp", scale_by=1.5, samples=["3", 0]),
        n31=node("KSampler", seed=99, steps=20, cfg=3.0, sampler_name="euler", scheduler="normal", denoise=0.5,
                 model=["4", 0], positive=["32", 0], negative=["32", 1], latent_image=["30", 0]),
        n32=node("ControlNetApplyAdvanced", strength=0.7, positive=["6", 0], negative=["7", 0], image=["33", 0]),
        n33=node("LoadImage", image="pose.png"),
        n8=node("VAEDecode", samples=["31", 0], vae=["4", 2]),
    )  # fmt: skip
    replay = read(prompt=changed)
    assert (replay.parameters.seed, replay.parameters.steps, replay.parameters.prompt) == (7, 8, "a cat on grass")
    assert replay.notes[0] == "it was drawn in 2 goes, one upon the other; the settings are those of the first"
    for named in ("node LatentUpscaleBy bislerp", "node ControlNetApplyAdvanced 0.7", "node LoadImage pose.png"):
        assert named in replay.notes[1]


def test_sides_of_a_condition_are_told_apart_behind_a_control_net() -> None:
    changed = graph(n32=node("ControlNetApplyAdvanced", positive=["6", 0], negative=["7", 0], strength=1))
    changed["3"]["inputs"] |= {"positive": ["32", 0], "negative": ["32", 1], "denoise": 0.5}
    replay = read(prompt=changed)
    assert (replay.parameters.prompt, replay.parameters.negative_prompt) == ("a cat on grass", "blurry")
    assert "denoise 0.5" in replay.notes[0]


def test_graphs_in_circles_and_without_ends() -> None:
    changed = graph()
    changed["4"]["inputs"]["model"] = ["3", 0]
    changed["6"]["inputs"]["text"] = ["6", 0]
    changed["5"]["inputs"]["width"] = ["5", 0]
    del changed["9"], changed["8"]
    assert read(prompt=changed).parameters.seed == 7


def test_muted_nodes_of_the_editor_are_passed_by() -> None:
    saved = workflow(values={**NODES, "11": []})
    next(one for one in saved["nodes"] if one["type"] == "LoraLoader")["mode"] = 4
    assert read(workflow=saved).notes == []


def test_large_graphs_are_read_soon() -> None:
    """A chain of samplers, each fed by all that come before, as nobody builds it."""
    changed = {}
    for i in range(3_000):  # with a search for each of them it takes minutes
        more = {f"more_{k}": [str(max(0, i - k)), 0] for k in range(8)}
        changed[str(i)] = node(
            "KSampler", seed=i, steps=["9999", 0], latent_image=[str(i - 1), 0], model=["0", 0], **more
        )
    assert read(prompt=changed).parameters.seed == 0


# --- samplers ---------------------------------------------------------------------------------------------------------


def test_labels_of_the_table_are_samplers_here_and_mean_themselves() -> None:
    assert set(SOLVERS) <= SCHEDULERS.keys()
    assert {name: find_sampler(name).label for name in SCHEDULERS} == {name: name for name in SCHEDULERS}
    for label, names in SOLVERS.items():
        for name in names:
            assert find_sampler(name) == (label, None)
            for schedule in SCHEDULES[""]:
                assert find_sampler(name, schedule) == (label, None)
            found = [find_sampler(name, "karras"), find_sampler(f"{name} Karras"), find_sampler(f"{name}_karras")]
            assert {one.label for one in found} == {f"{label} Karras" if f"{label} Karras" in SCHEDULERS else label}
            assert {one.note is None for one in found} == {f"{label} Karras" in SCHEDULERS}
    for reason, names in WITHOUT.items():
        assert {find_sampler(name, "karras") for name in names} == {(None, reason)}


@pytest.mark.parametrize(
    ("name", "schedule", "label", "noted"),
    [
        ("dpmpp_2m_sde_gpu", "karras", "DPM++ 2M SDE Karras", False),
        ("dpmpp_2m_sde_k", "", "DPM++ 2M SDE Karras", False),
        ("euler_k", "", "Euler Karras", False),
        ("DPM++ 2M", "Automatic", "DPM++ 2M Karras", False),
        ("DPM++ 2M SDE", "Automatic", "DPM++ 2M SDE", True),
        ("Euler a", "Automatic", "Euler a", False),
        ("Euler", "SGM Uniform", "Euler", True),
        ("ddim", "ddim_uniform", "DDIM", False),
        ("heun_k", "", "Heun", True),
        ("DPM++ 2M Exponential", "", "DPM++ 2M", True),
        ("DPM++ 3M SDE Exponential", "", None, True),
        ("k_lms", "", None, True),
        ("Nonsense", "karras", None, True),
        ("", "", None, True),
    ],
)
def test_spellings(name: str, schedule: str, label: str | None, noted: bool) -> None:
    found = find_sampler(name, schedule)
    assert (found.label, found.note is not None) == (label, noted)


# --- mutations --------------------------------------------------------------------------------------------------------


def outcome(data: bytes) -> tuple[Replay | None, list[str]]:
    """What is read of a picture, and all that is said to the user."""
    try:
        found = find_drawing(data)
        replay = None if found is None else Replay(Path("a.png"), found, ())
        if replay is not None:
            replay.request()
        return replay, [] if replay is None else replay.notes
    except (PictureError, StudioError) as error:
        return None, [str(error)]


@settings(max_examples=EXAMPLES, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(data=drawings())
def test_any_text_is_read_or_refused(data: bytes) -> None:
    replay, said = outcome(data)
    assert all("\n" not in one and len(one) < 6_000 for one in said)
    if replay is not None and "steps" in replay.parameters.unsaid:  # else it may be a prompt, before a line of settings
        assert not re.match(rf"[{{\[].{{0,40}}({'|'.join(NEVER_IN_A_PROMPT)})", replay.parameters.prompt)


def test_the_mutated_texts_are_worth_trying() -> None:
    """Most are read, with something to say; were all refused, nothing would be tested."""
    seen: list[tuple[bool, bool]] = []

    @settings(max_examples=EXAMPLES, deadline=None, derandomize=True, database=None, phases=[Phase.generate])
    @given(data=drawings())
    def collect(data: bytes) -> None:
        replay, said = outcome(data)
        seen.append((replay is not None, bool(said)))

    collect()
    shares = {kind: seen.count(kind) / len(seen) for kind in set(seen)}
    assert shares[(True, True)] > 0.3
    assert 0.02 < shares[(False, True)] < 0.5
