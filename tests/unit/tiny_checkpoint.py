"""A Stable Diffusion of random weights in the hub's folder layout: the real architecture, very small."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from load_tests.full_size import SCHEDULE

SIDE = 128
"""The checkpoint's own size in pixels: 16 latents of 8 pixels."""


def write_checkpoint(folder: Path, prediction_type: str = "epsilon", in_channels: int = 4) -> Path:
    """Writes the checkpoint below `folder`, the same one every time, and gives its folder.

    `in_channels` 9 makes the UNet one for inpainting.
    """
    torch.manual_seed(7)
    build: Any = StableDiffusionPipeline
    pipeline = build(
        vae=vae(),
        text_encoder=CLIPTextModel(text_config()).eval(),
        tokenizer=tokenizer(folder),
        unet=_unet(in_channels),
        scheduler=DDIMScheduler.from_config({**SCHEDULE, "prediction_type": prediction_type}),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    checkpoint = folder / f"tiny-{prediction_type}"
    pipeline.save_pretrained(checkpoint, safe_serialization=True)
    return checkpoint


def tokenizer(folder: Path) -> CLIPTokenizer:
    letters = "abcdefghijklmnopqrstuvwxyz"
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary, merges = folder / "vocab.json", folder / "merges.txt"
    vocabulary.write_text(json.dumps({token: number for number, token in enumerate(tokens)}))
    merges.write_text("#version: 0.2\n")
    loader: Any = CLIPTokenizer
    return loader(str(vocabulary), str(merges), model_max_length=77)


def text_config(hidden_size: int = 32, projection_dim: int = 32) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=54,
        bos_token_id=52,
        eos_token_id=53,
        pad_token_id=53,
        hidden_size=hidden_size,
        projection_dim=projection_dim,
        intermediate_size=64,
        num_attention_heads=4,
        num_hidden_layers=2,
        max_position_embeddings=77,
    )


def _unet(in_channels: int) -> Any:
    unet: Any = UNet2DConditionModel
    return unet(
        in_channels=in_channels,
        sample_size=SIDE // 8,
        block_out_channels=(16, 32, 32),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=32,
        attention_head_dim=4,
        norm_num_groups=8,
    ).eval()


def vae() -> Any:
    build: Any = AutoencoderKL
    return build(
        block_out_channels=(8, 16, 16, 16),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=SIDE,
    ).eval()
