"""The parts of Forge that the extension meets, from a checkout, on the CPU: its UNet, patcher and text engine.

Run in a process of its own, with what Forge imports and the extension never meets (quantized weights, model guessing)
left out. Prints a JSON object of what came out.
"""

import json
import sys
import types
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel  # noqa: F401 - before what is left out is told to be there
from tiny_tokenizer import tiny_tokenizer
from transformers import CLIPTextConfig, CLIPTextModel

from coeff_diffusion import Coefficients, CoefficientsInfo
from coeff_diffusion.method.hosts.layers import find_places
from coeff_diffusion.method.sites import text_stages

WIDTH = 32
PROMPTS = ["a photo of (SKS  dog:1.2) on grass", "a photo of the dog", "sks dog " + "on the beach " * 40]


class Nothing(type):
    """Has every attribute, and is nothing."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return Nothing(name, (), {})


class LeftOut(types.ModuleType):
    def __getattr__(self, name: str) -> Any:
        return getattr(Nothing("module", (), {}), name)


def import_forge(checkout: Path) -> None:
    """Make Forge's backend importable."""
    sys.argv = ["forge", "--always-cpu"]
    sys.path.insert(0, str(checkout))
    modules, shared = types.ModuleType("modules"), types.ModuleType("modules.shared")
    shared.opts = types.SimpleNamespace(emphasis="No norm")  # type: ignore[attr-defined]
    modules.shared = shared  # type: ignore[attr-defined]
    sys.modules |= {"modules": modules, "modules.shared": shared}
    names = ("gguf", "packages_3rdparty.gguf", "bitsandbytes", "huggingface_guess")
    sys.modules |= {name: LeftOut(name) for name in names}


def new_model() -> Any:
    """What the extension reads of `p.sd_model`."""
    from backend.nn.unet import IntegratedUNet2DConditionModel
    from backend.patcher.unet import UnetPatcher
    from backend.text_processing.classic_engine import ClassicTextProcessingEngine

    torch.manual_seed(0)
    model = torch.nn.Module()
    depths = {"transformer_depth": [1, 1], "transformer_depth_output": [1] * 4, "transformer_depth_middle": 1}
    sizes = {"in_channels": 4, "out_channels": 4, "model_channels": WIDTH, "channel_mult": [1, 2], "context_dim": WIDTH}
    options = {"num_res_blocks": [1, 1], "dropout": 0, "num_heads": 4, "use_checkpoint": False}
    model.diffusion_model = IntegratedUNet2DConditionModel(
        use_spatial_transformer=True, **sizes, **depths, **options
    ).eval()
    for weight in model.diffusion_model.out[-1].parameters():  # begins as zeros, and nothing would be seen
        torch.nn.init.normal_(weight, std=0.1)
    tokenizer = tiny_tokenizer()
    config = {"hidden_size": WIDTH, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": 0}
    encoder = CLIPTextModel(CLIPTextConfig(vocab_size=len(tokenizer), **config, **ends)).eval()
    if not hasattr(encoder, "text_model"):  # as in the transformers that Forge brings
        object.__setattr__(encoder, "text_model", encoder)
    engine = ClassicTextProcessingEngine(
        types.SimpleNamespace(transformer=encoder), tokenizer, embedding_key="clip_l", embedding_expected_shape=WIDTH
    )
    unet = UnetPatcher(model, load_device="cpu", offload_device="cpu", current_device="cpu")
    return types.SimpleNamespace(text_processing_engine=engine, forge_objects=types.SimpleNamespace(unet=unet))


def new_subject(unet: Any) -> Coefficients:
    draw = torch.Generator().manual_seed(1)
    sites = {path: place.site for path, place in find_places(unet).items()}
    coeffs = {path: 0.5 * torch.randn(site.heads, site.heads, generator=draw) for path, site in sites.items()}
    tokens = {"text_encoder": torch.randn(2, WIDTH, generator=draw)}
    stages = {stage: torch.randn(2, WIDTH, generator=draw) for stage in text_stages(sites.values())}
    return Coefficients(coeffs, tokens, CoefficientsInfo(trigger="sks dog"), stage_tokens=stages)


@torch.no_grad()
def main(checkout: Path) -> dict[str, Any]:
    import_forge(checkout)
    from lib_coeff_diffusion import apply, words

    model = new_model()
    engine, unet = model.text_processing_engine, model.forge_objects.unet
    subject = new_subject(unet.model.diffusion_model)
    known = words.teach(model, [subject])
    called = [words.called(model, subject, prompt) for prompt in PROMPTS]
    texts = [engine([prompt])[0] for prompt in PROMPTS]

    chunk = engine.process_texts(PROMPTS[:1])[0][0][0]  # what the text encoder reads at the places that were told
    engine.embeddings.fixes = [chunk.fixes]
    read = engine.text_encoder.transformer.text_model.embeddings.token_embedding(torch.tensor([chunk.tokens]))[0]
    places = called[0][1]
    assert places is not None
    learned = read[places >= 0]

    schedules = [[types.SimpleNamespace(schedules=[types.SimpleNamespace(cond=text)])] for text in texts]
    conditioning = types.SimpleNamespace(batch=schedules)
    patched, _ = apply.apply_subjects(model, {"dog": (subject, 0.8)}, PROMPTS, conditioning)
    length = max(map(len, texts))
    positive = torch.stack([torch.cat([one, one[-1:].repeat(length - len(one), 1)]) for one in texts])
    negative = engine(["ugly"]).repeat(3, length // 77, 1)
    noise = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(2)).repeat(2, 1, 1, 1)

    def draw(patcher: Any) -> Any:
        parts = {"cond_or_uncond": [1, 0], "sigmas": torch.full((3,), 5.0)}
        options = {**patcher.model_options["transformer_options"], **parts}
        context = torch.cat([negative, positive])
        return unet.model.diffusion_model(noise, torch.full((6,), 500.0), context, transformer_options=options)

    changes = (draw(patched) - draw(unet)).abs().amax((1, 2, 3)).tolist()
    words.forget(known)
    return {
        "layers": len(subject),
        "places": [[] if one is None else (one >= 0).nonzero().flatten().tolist() for _, one in called],
        "lengths": [len(text) for text in texts],
        "reads_learned": torch.equal(learned, subject.tokens["text_encoder"]),
        "changes": changes,
        "left": list(engine.embeddings.word_embeddings),
    }


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]))))
