"""The parts of the embedded base, all stock classes of diffusers and transformers, at their shipped sizes."""

import json
from pathlib import Path

import torch
from diffusers import AutoencoderTiny, DDIMScheduler, UNet2DConditionModel
from diffusers.models.autoencoders.vae import AutoencoderTinyBlock
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

LATENT_CHANNELS = 16
TEXT_WIDTH = 256
PROMPT_LENGTH = 40  # tokens; the longest training caption has about 25
START, END = "<|startoftext|>", "<|endoftext|>"


def make_autoencoder() -> AutoencoderTiny:
    """128 x 128 pictures to 16 x 16 x 16 latents; the encoder is linear (see `linear_code.py`), the decoder is not."""
    vae = AutoencoderTiny(
        latent_channels=LATENT_CHANNELS,
        encoder_block_out_channels=(48,) * 4,  # 3 colours x 4 x 4 pixels: what two halvings of the size have to keep
        decoder_block_out_channels=(64,) * 4,
        num_encoder_blocks=(0, 0, 0, 0),
        num_decoder_blocks=(3, 3, 2, 0),  # no blocks at full resolution: most of the cost would be there
    )
    # the decoder has no norms: start with residual blocks that do nothing and convolutions that keep the variance
    for module in vae.decoder.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight)
            if module.bias is not None:
                torch.nn.init.zeros_(module.bias)
    for module in vae.decoder.modules():
        if isinstance(module, AutoencoderTinyBlock):
            torch.nn.init.zeros_(module.conv[-1].weight)
    return vae


def make_unet() -> UNet2DConditionModel:
    """Self- and cross-attention of 8 heads at all three levels and in the middle: 20 attention layers."""
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        down_block_types=("CrossAttnDownBlock2D",) * 3,
        up_block_types=("CrossAttnUpBlock2D",) * 3,
        block_out_channels=(128, 192, 256),
        layers_per_block=1,
        attention_head_dim=8,  # the number of heads: diffusers keeps the old name
        cross_attention_dim=TEXT_WIDTH,
        norm_num_groups=32,
    )


def make_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=TEXT_WIDTH,
        intermediate_size=3 * TEXT_WIDTH,
        num_hidden_layers=3,
        num_attention_heads=8,
        max_position_embeddings=PROMPT_LENGTH,
        projection_dim=TEXT_WIDTH,
        hidden_act="quick_gelu",
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModel(config)


def make_scheduler() -> DDIMScheduler:
    """v-prediction down to zero terminal SNR (Lin et al. 2023), so that plain background colours come out right.

    A cosine schedule: small latents lose their content early, Stable Diffusion's own is too noisy for 16 x 16.
    """
    return DDIMScheduler(
        beta_schedule="squaredcos_cap_v2",
        clip_sample=False,
        set_alpha_to_one=True,
        steps_offset=1,
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
    )


def train_tokenizer(captions: list[str], folder: Path, vocab_size: int = 2048) -> CLIPTokenizer:
    """A CLIP tokenizer whose merges come from the captions and whose alphabet is all 256 bytes: any text tokenizes."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token=END))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.ByteLevel(False, use_regex=True)]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, initial_alphabet=alphabet, end_of_word_suffix="</w>", show_progress=False
    )
    tokenizer.train_from_iterator(captions, trainer)
    merges = [tuple(pair) for pair in json.loads(tokenizer.to_str())["model"]["merges"]]
    # CLIP's own order: bytes, bytes that end a word, merges, specials
    words = [*alphabet, *(f"{letter}</w>" for letter in alphabet), *("".join(pair) for pair in merges), START, END]
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = {word: index for index, word in enumerate(dict.fromkeys(words))}
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(" ".join(pair) for pair in merges) + "\n")
    made = CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=PROMPT_LENGTH)
    made.save_pretrained(folder)
    return CLIPTokenizer.from_pretrained(folder)
