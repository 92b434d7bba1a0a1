"""Stable Diffusion XL: two text encoders side by side, and a UNet that is told the picture's size."""

from __future__ import annotations

from transformers import CLIPTextModel, CLIPTextModelWithProjection

from models.image.checkpoint import TextEncoders, load_parts
from models.image.stable_diffusion import StableDiffusion
from models.protocol import ModelSpec

TEXT_ENCODERS: TextEncoders = {
    "text_encoder": ("tokenizer", CLIPTextModel, "last but one"),
    "text_encoder_2": ("tokenizer_2", CLIPTextModelWithProjection, "last but one"),
}


def load(spec: ModelSpec) -> StableDiffusion:
    """Loads the checkpoint in `spec.folder`. Raises `ValueError` for a configuration that is not built."""
    parts = load_parts(spec, TEXT_ENCODERS, zero_empty=True)
    if not parts.is_told_sizes:
        raise ValueError("its UNet is not told sizes as Stable Diffusion XL's is")
    return StableDiffusion(spec, parts)
