"""Tiny real components: what every test runs on. No network, no mocks of a model."""

import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from browsing import FLAGS, find_chromium
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from hub_server import WRITER, HubServer
from huggingface_hub import constants
from moulds import Mould
from PIL import Image, ImageDraw
from subject_maker import make_subject
from tiny_tokenizer import tiny_tokenizer
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from coeff_diffusion import Coefficients, CoefficientsInfo, describe_base, layer_heads
from coeff_diffusion.training import validation

# What runs in the background of a shell has Ctrl-C and the end of the terminal switched off; the tests are about them.
for number, handler in ((signal.SIGINT, signal.default_int_handler), (getattr(signal, "SIGHUP", None), signal.SIG_DFL)):
    if number is not None and signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, handler)

torch.set_num_threads(1)  # models this small only lose time to a second thread, and much of it on a busy machine


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A test in a browser has a second try, listed as RERUN: two programs race on a busy machine."""
    for item in items:
        if item.get_closest_marker("browser"):
            item.add_marker(pytest.mark.flaky(reruns=1))


@pytest.fixture(autouse=True, scope="session")
def _few_are_measured() -> None:
    """What a training of a few steps learned is measured on as few noised pictures as are allowed."""
    validation.MOST = validation.LEAST


@pytest.fixture(scope="session")
def tiny_base_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Stable Diffusion of 300,000 weights, saved by diffusers: 14 attention layers, 4 or 8 heads, 16 px pictures."""
    torch.manual_seed(0)
    tokenizer = tiny_tokenizer()
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=77,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            projection_dim=32,
        )
    )
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        attention_head_dim=(4, 8),  # the number of heads, as in Stable Diffusion's own configs
        cross_attention_dim=32,
        norm_num_groups=8,
    )
    pipe = StableDiffusionPipeline(
        vae=_vae(),
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    path = tmp_path_factory.mktemp("base") / "tiny"
    pipe.save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def _tiny_mould(tiny_base_dir: Path) -> Mould:
    pipe = StableDiffusionPipeline.from_pretrained(tiny_base_dir)
    pipe.set_progress_bar_config(disable=True)
    return Mould(pipe)


@pytest.fixture
def tiny_pipe(_tiny_mould: Mould) -> StableDiffusionPipeline:
    """A fresh pipeline as from `tiny_base_dir`, in evaluation mode, without a progress bar."""
    return _tiny_mould.cast()


XL_WIDTHS = {"text_encoder": 32, "text_encoder_2": 48}  # of text: unlike each other, as CLIP's are


@pytest.fixture
def tiny_xl_pipe() -> StableDiffusionXLPipeline:
    """A Stable Diffusion XL of tiny parts: two text encoders, pooled text and sizes, 16 px pictures."""
    torch.manual_seed(0)
    tokenizer = tiny_tokenizer()
    options: dict[str, Any] = {
        "vocab_size": len(tokenizer), "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "max_position_embeddings": 77,
        "bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }  # fmt: skip
    first, second = ({**options, "hidden_size": width, "projection_dim": width} for width in XL_WIDTHS.values())
    pipe = StableDiffusionXLPipeline(
        vae=_vae(),
        text_encoder=CLIPTextModel(CLIPTextConfig(**first)).eval(),
        text_encoder_2=CLIPTextModelWithProjection(CLIPTextConfig(**second)).eval(),
        tokenizer=tokenizer,
        tokenizer_2=tiny_tokenizer(),
        unet=UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(16, 32),
            layers_per_block=1,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=(1, 2),
            attention_head_dim=(4, 8),
            cross_attention_dim=sum(XL_WIDTHS.values()),
            norm_num_groups=8,
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=XL_WIDTHS["text_encoder_2"] + 6 * 8,
        ).eval(),
        scheduler=_scheduler(),
        add_watermarker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def new_subject(tiny_pipe: StableDiffusionPipeline) -> Callable[..., Coefficients]:
    """Makes a subject for `tiny_pipe` that visibly does something: random matrices and, with `vectors`, a token."""
    heads, base = layer_heads(tiny_pipe.unet), describe_base(tiny_pipe.unet)

    def make(name: str = "dog", trigger: str = "sks dog", vectors: int = 0, seed: int = 1, **info: Any) -> Coefficients:
        generator = torch.Generator().manual_seed(seed)
        coeffs = {path: 0.3 * torch.randn(n, n, generator=generator) for path, n in heads.items()}
        tokens = {"text_encoder": torch.randn(vectors, 32, generator=generator)} if vectors else {}
        return Coefficients(coeffs, tokens, CoefficientsInfo(name=name, trigger=trigger, **{**base, **info}))

    return make


@pytest.fixture
def subject_images(tmp_path: Path) -> Path:
    """A folder of 5 pictures, each of its own content, size and format."""
    folder = tmp_path / "subject"
    folder.mkdir()
    for i, (width, height, suffix) in enumerate(
        [(24, 24, "png"), (32, 24, "jpg"), (24, 40, "png"), (48, 48, "jpeg"), (20, 20, "png")]
    ):
        image = Image.new("RGB", (width, height), (40 * i, 120, 255 - 40 * i))
        ImageDraw.Draw(image).ellipse((4, 4, 12 + 2 * i, 12 + i), fill=(255, 30 * i, 20))
        image.save(folder / f"{i}.{suffix}")
    return folder


@pytest.fixture(scope="session")
def tiny_blip_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A captioning model, see `tiny_blip`."""
    from tiny_blip import save_tiny_blip

    return save_tiny_blip(tmp_path_factory.mktemp("blip"))


@pytest.fixture
def service(tiny_pipe: StableDiffusionPipeline, tmp_path: Path) -> Iterator[Any]:
    """What is behind the page, on the tiny base, with two subjects of one trigger in its library: dog and other-dog."""
    from coeff_diffusion.inference.studio import Studio
    from coeff_diffusion.service import StudioService
    from coeff_diffusion.sources.library import Library

    library = Library(tmp_path / "subjects")
    library.folder.mkdir()
    for name, seed in (("dog", 1), ("other-dog", 2)):
        subject = make_subject(tiny_pipe.unet, tiny_pipe.text_encoder, name, "sks dog", "dog", seed)
        subject.save(library.folder / f"{name}.safetensors")
    service = StudioService(Studio(tiny_pipe), library, tmp_path / "pictures")
    yield service
    service.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A headless Chromium, driven by Playwright."""
    playwright = pytest.importorskip("playwright.sync_api")
    executable = find_chromium()
    with playwright.sync_playwright() as driver:
        playwright.expect.set_options(timeout=120_000)  # milliseconds, for a machine that is busy with something else
        browser = driver.chromium.launch(executable_path=executable, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def hub_client() -> Iterator[None]:
    """One client for all tests: making one takes longer than a test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NO_PROXY", "127.0.0.1")
        huggingface_hub.close_session()
        huggingface_hub.get_session()
        yield
        huggingface_hub.close_session()


@pytest.fixture
def server(hub_client: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A Hub that the real client talks to, as a user who may write."""
    server = HubServer()
    server.start()
    for name, value in {
        "ENDPOINT": server.url,
        "HUGGINGFACE_CO_URL_TEMPLATE": server.url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_OFFLINE": False,
        "HF_HUB_CACHE": str(tmp_path / "cache"),
        "HF_TOKEN_PATH": str(tmp_path / "token"),
        "HF_HUB_DISABLE_XET": True,
        "HF_HUB_DISABLE_TELEMETRY": True,
    }.items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setenv("HF_TOKEN", WRITER)
    yield server
    server.stop()


def _vae() -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D", "DownEncoderBlock2D"),
        up_block_types=("UpDecoderBlock2D", "UpDecoderBlock2D"),
        latent_channels=4,
        norm_num_groups=4,
        sample_size=16,
    )


def _scheduler() -> DDIMScheduler:
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
