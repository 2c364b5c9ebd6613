"""What a ComfyUI graph says of how its picture was drawn: from the output back to the sampler, and on to its inputs.

A graph, as the chunk `prompt` has it, is `{id: {"class_type": ..., "inputs": {name: value or [id, slot]}}}`. Nodes are
told by what their inputs are called, since everybody may write nodes of their own; every node on the way that does more
than is read here is named.
"""

import json
import re
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

MAX_NODES = 10_000
MAX_LOOKED_UP = 20  # nodes behind an input that is linked, for its value
NEVER = 1_000  # steps that no sampler takes: "to the end" for those who write a number
Node = Mapping[str, Any]
Fields = dict[str, str]

SEEDS = ("seed", "noise_seed")
TEXT = re.compile(r"(text|string|prompt|value)(_?[a-z0-9]{1,2})?|positive_prompt")
NO_TEXT = ("model", "clip", "vae", "image", "latent_image", "control_net")  # inputs behind which no prompt stands
MODELS = ("ckpt_name", "unet_name", "model_name", "base_ckpt_name")
VALUES = ("value", "int", "float", "number", "string", "text", "seed", "Value", "Number", "select")
# All that nodes like these do is read here, or changes no pixel.
PLAIN = {
    "KSampler", "KSamplerAdvanced", "SamplerCustom", "SamplerCustomAdvanced", "KSamplerSelect", "BasicScheduler",
    "KarrasScheduler", "RandomNoise", "CFGGuider", "BasicGuider", "CLIPTextEncode", "CLIPTextEncodeSDXL",
    "EmptyLatentImage", "EmptySD3LatentImage", "CheckpointLoaderSimple", "CheckpointLoader", "UNETLoader", "VAEDecode",
    "SaveImage", "PreviewImage", "Reroute", "PrimitiveNode", "Note", "MarkdownNote",
}  # fmt: skip
# Inputs that set what KSampler-like nodes do beside what is read: named where they are not as here.
BESIDE = ("denoise", "add_noise", "start_at_step", "end_at_step", "return_with_leftover_noise", "batch_size",
          "stop_at_clip_layer", "strength_model", "strength_clip", "lora_name", "control_net_name", "vae_name",
          "strength", "upscale_by", "upscale_method", "image")  # fmt: skip
AS_HERE = {"denoise": (1,), "add_noise": ("enable",), "start_at_step": (0,), "return_with_leftover_noise": ("disable",),
           "batch_size": (1,), "stop_at_clip_layer": (-1,)}  # fmt: skip
# `workflow` has the values of a node without their names.
WIDGETS: dict[str, Sequence[str]] = {
    "KSampler": ("seed", "control_after_generate", "steps", "cfg", "sampler_name", "scheduler", "denoise"),
    "KSamplerAdvanced": ("add_noise", "noise_seed", "control_after_generate", "steps", "cfg", "sampler_name",
                         "scheduler", "start_at_step", "end_at_step", "return_with_leftover_noise"),
    "SamplerCustom": ("add_noise", "noise_seed", "control_after_generate", "cfg"),
    "KSamplerSelect": ("sampler_name",),
    "BasicScheduler": ("scheduler", "steps", "denoise"),
    "RandomNoise": ("noise_seed", "control_after_generate"),
    "CFGGuider": ("cfg",),
    "CLIPTextEncode": ("text",),
    "CLIPTextEncodeSDXL": ("width", "height", "crop_w", "crop_h", "target_width", "target_height", "text_g", "text_l"),
    "EmptyLatentImage": ("width", "height", "batch_size"),
    "CheckpointLoaderSimple": ("ckpt_name",),
    "LoraLoader": ("lora_name", "strength_model", "strength_clip"),
    "LoraLoaderModelOnly": ("lora_name", "strength_model"),
    "CLIPSetLastLayer": ("stop_at_clip_layer",),
    "VAELoader": ("vae_name",),
    "PrimitiveNode": ("value",),
}  # fmt: skip


def read_graph(data: Mapping[str, Any]) -> tuple[Fields, list[str]] | None:
    """What a graph says, by A1111's keys, and sentences for the user; None where it has nothing that draws."""
    nodes = {str(key): node for key, node in data.items() if _is_node(node)}
    if len(nodes) > MAX_NODES:
        return None
    graph = Graph(nodes)
    sampler, later = graph.first_sampler()
    if sampler is None:
        return None
    notes = []
    if later:
        notes.append(f"it was drawn in {later + 1} goes, one upon the other; the settings are those of the first")
    fields = {**graph.beside(sampler), **graph.of_sampler(sampler), **graph.prompts(sampler, notes)}
    return {key: value for key, value in fields.items() if value}, notes


def read_workflow(data: Mapping[str, Any]) -> tuple[Fields, list[str]] | None:
    """The same of what the editor saves, the chunk `workflow`: values without names, links in a list of their own."""
    nodes, links = data.get("nodes"), data.get("links")
    if not isinstance(nodes, list) or not isinstance(links, list) or len(nodes) > MAX_NODES:
        return None
    sources = {_key(link[0]): [_key(link[1]), link[2]] for link in links if isinstance(link, list) and len(link) > 2}
    return read_graph({_key(node.get("id")): _named(node, sources) for node in nodes if isinstance(node, dict)})


def _named(node: Node, sources: Mapping[str, Any]) -> Node:
    kind, values, inputs = node.get("type"), node.get("widgets_values"), {}
    if isinstance(values, list) and isinstance(kind, str):
        inputs = dict(zip(WIDGETS.get(kind, ()), values, strict=False))
    elif isinstance(values, dict):
        inputs = dict(values)
    ins = node.get("inputs")
    for one in ins if isinstance(ins, list) else ():
        if isinstance(one, dict) and (source := sources.get(_key(one.get("link")))):
            inputs[str(one.get("name"))] = source
    passed_by = node.get("mode") in (2, 4)  # muted or bypassed: what comes in goes on
    return {"class_type": "Reroute" if passed_by else kind, "inputs": inputs}


class Graph:
    """The nodes of a graph by id."""

    def __init__(self, nodes: Mapping[str, Node]) -> None:
        self.nodes = nodes

    def source(self, value: Any) -> str | None:
        """The node that an input is linked to."""
        linked = isinstance(value, list) and len(value) == 2 and _key(value[0]) in self.nodes
        return _key(value[0]) if linked else None

    def upstream(self, *starts: str, follow: Callable[[str, str], bool] | None = None) -> Iterator[str]:
        """Nodes and all that feed them, nearest first; `follow` says which inputs of a node are looked into."""
        seen, waiting = set(starts), deque(starts)
        while waiting:
            yield (node := waiting.popleft())
            for name, value in self.inputs(node).items():
                other = self.source(value)
                if other is not None and other not in seen and (follow is None or follow(node, name)):
                    seen.add(other)
                    waiting.append(other)

    def inputs(self, node: str) -> Mapping[str, Any]:
        inputs: Mapping[str, Any] = self.nodes[node]["inputs"]
        return inputs

    def kind(self, node: str) -> str:
        return str(self.nodes[node].get("class_type"))

    def reached(self) -> list[str]:
        """What makes the picture: all that feeds what saves it or, without such a node, all that is there."""
        outputs = [node for node in self.nodes if self.kind(node) in ("SaveImage", "PreviewImage")]
        fed = {self.source(value) for node in self.nodes for value in self.inputs(node).values()}
        return list(self.upstream(*(outputs or [node for node in self.nodes if node not in fed] or self.nodes)))

    def first_sampler(self) -> tuple[str | None, int]:
        """The sampler that begins from noise, and how many draw on upon its latents."""
        last = next((node for node in self.reached() if self._draws(node)), None)
        if last is None:
            return None, 0
        samplers = [node for node in self.upstream(last) if self._draws(node)]
        return samplers[-1], len(samplers) - 1

    def _draws(self, node: str) -> bool:
        """Whether a node is a sampler: it takes a seed or noise, and what to do with it."""
        names = self.inputs(node).keys()
        return bool(names & {*SEEDS, "noise"}) and (
            "sampler" in self.kind(node).lower() or bool(names & {"steps", "sigmas", "sampler_name"})
        )

    def of_sampler(self, sampler: str) -> Fields:
        """Seed, steps, sampler, guidance, size and model."""
        near = list(self.upstream(sampler))
        of_latent = self._behind(sampler, ("latent_image", "latent", "samples"))
        of_model = self._behind(sampler, ("model", "guider"))
        return {
            "Seed": self._value(near, SEEDS),
            "Steps": self._value(near, ("steps",)),
            "CFG scale": self._value(near, ("cfg", "cfg_scale")),
            "Sampler": self._value(near, ("sampler_name", "sampler")),
            "Schedule type": self._value(near, ("scheduler",)),
            "width": self._value(of_latent, ("width", "empty_latent_width")),
            "height": self._value(of_latent, ("height", "empty_latent_height")),
            "Model": self._value(of_model, MODELS),
        }

    def prompts(self, sampler: str, notes: list[str]) -> Fields:
        """Prompt and negative prompt: the texts of the encoders behind the sampler's conditions."""
        found = {}
        for key, names in (("Prompt", ("positive", "conditioning")), ("Negative prompt", ("negative",))):
            texts = self._texts(sampler, names)
            if len(texts) > 1:
                notes.append(f"its {key.lower()} is put together of {len(texts)} texts; they are joined by commas")
            found[key] = ", ".join(texts)
        return found

    def _texts(self, sampler: str, side: Sequence[str]) -> list[str]:
        def parts_ways(node: str) -> bool:
            return node == sampler or {"positive", "negative"} <= self.inputs(node).keys()

        def follow(node: str, name: str) -> bool:
            if parts_ways(node):
                return name in side or name == "guider"
            return name not in NO_TEXT

        texts: dict[str, None] = {}
        for node in self.upstream(sampler, follow=follow):
            for name, text in self.inputs(node).items():
                wanted = name in side if parts_ways(node) else TEXT.fullmatch(name)
                if wanted and isinstance(text, str) and text.strip():
                    texts[text] = None
        return list(texts)

    def beside(self, sampler: str) -> Fields:
        """What else makes the picture, by the node that does it, or its input."""
        found: dict[str, list[str]] = {}
        for node in self.reached():
            kind, inputs = self.kind(node), self.inputs(node)
            said = {
                name: _text(inputs[name])
                for name in BESIDE
                if name in inputs and self.source(inputs[name]) is None and inputs[name] not in AS_HERE.get(name, ())
            }
            if isinstance(inputs.get("end_at_step"), int) and inputs["end_at_step"] >= NEVER:
                said.pop("end_at_step", None)
            if node == sampler or kind.startswith("Empty"):
                for name, text in said.items():
                    found.setdefault(name, []).append(text)
            elif kind not in PLAIN:
                found.setdefault(f"node {kind}", []).extend(
                    text for text in said.values() if text[:1] not in ("{", "[")
                )
        return {key: ", ".join(texts) or "used" for key, texts in found.items()}

    def _behind(self, node: str, names: Sequence[str]) -> list[str]:
        """What feeds these inputs of a node, nearest first."""
        starts = (self.source(self.inputs(node).get(name)) for name in names)
        return [node, *self.upstream(*(start for start in starts if start is not None))]

    def _value(self, nodes: Sequence[str], names: Sequence[str]) -> str:
        """The nearest value under one of these names, looked up where it is linked; empty where there is none."""
        for node in nodes:
            for name in names:
                value = self.inputs(node).get(name)
                start = self.source(value)
                if start is not None:
                    behind = [self.inputs(one) for one in islice(self.upstream(start), MAX_LOOKED_UP)]
                    literals = (one[key] for one in behind for key in (name, *VALUES) if key in one)
                    value = next((one for one in literals if isinstance(one, str | int | float)), None)
                if isinstance(value, str | int | float) and not isinstance(value, bool):
                    return _text(value)
        return ""


def _is_node(node: Any) -> bool:
    return isinstance(node, dict) and isinstance(node.get("inputs"), dict) and isinstance(node.get("class_type"), str)


def _key(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)[:100] if isinstance(value, int) else ""


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
