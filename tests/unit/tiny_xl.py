"""A Stable Diffusion XL of random weights in the hub's folder layout: the real architecture, very small."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import StableDiffusionXLPipeline
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from load_tests.full_size import SCHEDULE
from tests.unit.tiny_checkpoint import SIDE, text_config, tokenizer, vae


def write_xl(folder: Path) -> Path:
    """Writes the checkpoint below `folder`, the same one every time, and gives its folder."""
    torch.manual_seed(11)
    build: Any = StableDiffusionXLPipeline
    pipeline = build(
        vae=vae(),
        text_encoder=CLIPTextModel(text_config()).eval(),
        text_encoder_2=CLIPTextModelWithProjection(text_config(hidden_size=64, projection_dim=48)).eval(),
        tokenizer=tokenizer(folder),
        tokenizer_2=tokenizer(folder),
        unet=_unet(),
        scheduler=EulerDiscreteScheduler.from_config({**SCHEDULE, "timestep_spacing": "leading"}),
        add_watermarker=False,
    )
    checkpoint = folder / "tiny-xl"
    pipeline.save_pretrained(checkpoint, safe_serialization=True)
    return checkpoint


def _unet() -> Any:
    unet: Any = UNet2DConditionModel
    return unet(
        sample_size=SIDE // 8,
        block_out_channels=(16, 32, 32),
        layers_per_block=2,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=32 + 64,
        attention_head_dim=(2, 4, 4),
        transformer_layers_per_block=(1, 1, 2),
        norm_num_groups=8,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=48 + 6 * 8,
    ).eval()
