"""Full-size models by their published configurations, with random weights: their speed, memory and arithmetic
do not depend on them, and nothing is downloaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from transformers import (
    AutoTokenizer,
    BarkCoarseConfig,
    BarkConfig,
    BarkFineConfig,
    BarkModel,
    BarkSemanticConfig,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    EncodecConfig,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
)
from transformers.models.bark.generation_configuration_bark import BarkGenerationConfig

from models.sources import EMBEDDED

SCHEDULE = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}

BARK_SIZES: dict[str, dict[str, Any]] = {
    "bark-small": {"hidden_size": 768, "num_layers": 12, "num_heads": 12, "bias": False},
    "bark": {"hidden_size": 1024, "num_layers": 24, "num_heads": 16, "bias": False},
}


@dataclass(frozen=True, slots=True)
class Modules:
    """What diffusers' types say of them is not what they take and give."""

    unet: Any
    vae: Any
    text_encoder: Any
    tokenizer: CLIPTokenizer


def sd15_modules(device: str = "cpu", dtype: torch.dtype = torch.float32, seed: int = 0) -> Modules:
    """The parts of Stable Diffusion 1.5, ready to infer. They know no words, so any tokenizer will do."""
    torch.manual_seed(seed)
    unet_kind, vae_kind, text_kind = _any(UNet2DConditionModel), _any(AutoencoderKL), _any(CLIPTextModel)
    text = CLIPTextConfig(
        hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12
    )
    with torch.device(device):
        unet = unet_kind(sample_size=64, cross_attention_dim=768, attention_head_dim=8)
        vae = vae_kind(
            block_out_channels=(128, 256, 512, 512),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=2,
            sample_size=512,
        )
        encoder = text_kind(text)
    for module in (unet, vae, encoder):
        (module if module.dtype == dtype else module.to(dtype)).eval().requires_grad_(False)
    tokenizer = CLIPTokenizer.from_pretrained(EMBEDDED / "tiny-sd" / "tokenizer", local_files_only=True)
    return Modules(unet, vae, encoder, tokenizer)


def write_sd15(folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    """Writes it into `folder` in the hub's layout: 4 GB in float32."""
    made = sd15_modules(dtype=dtype)
    build: Any = StableDiffusionPipeline
    pipeline = build(
        vae=made.vae,
        text_encoder=made.text_encoder,
        tokenizer=made.tokenizer,
        unet=made.unet,
        scheduler=DDIMScheduler.from_config(SCHEDULE),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder, safe_serialization=True)
    return folder


def write_tinyllama(folder: Path, dtype: torch.dtype = torch.bfloat16) -> Path:
    """TinyLlama 1.1B in the hub's layout, 2.2 GB in bfloat16.

    With the embedded model's tokenizer, and a word for each token that it has not: random weights choose
    those, and a token without text is no event of a stream.
    """
    config = LlamaConfig(
        vocab_size=32_000,
        hidden_size=2048,
        intermediate_size=5632,
        num_hidden_layers=22,
        num_attention_heads=32,
        num_key_value_heads=4,
        max_position_embeddings=2048,
        bos_token_id=1,
        eos_token_id=2,
    )
    torch.manual_seed(0)
    _any(LlamaForCausalLM)(config).to(dtype).save_pretrained(folder)
    tokenizer: Any = AutoTokenizer.from_pretrained(EMBEDDED / "tiny-llama")
    tokenizer.add_tokens([f"word{number}" for number in range(len(tokenizer), config.vocab_size)])
    tokenizer.save_pretrained(folder)
    return folder


def bark_model(size: str, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Any:
    """A `BarkModel` of `BARK_SIZES`, ready to infer."""
    sizes = BARK_SIZES[size]
    config = BarkConfig(
        semantic_config=BarkSemanticConfig(input_vocab_size=129600, output_vocab_size=10048, **sizes),
        coarse_acoustics_config=BarkCoarseConfig(input_vocab_size=12096, output_vocab_size=12096, **sizes),
        fine_acoustics_config=BarkFineConfig(input_vocab_size=1056, output_vocab_size=1056, **sizes),
        codec_config=EncodecConfig(),
    )
    torch.manual_seed(0)
    with torch.device(device):
        model = _any(BarkModel)(config)
    model.to(dtype).eval().requires_grad_(False)
    model.codec_model.float()
    published: Any = BarkGenerationConfig()
    model.generation_config = _any(GenerationConfig)(**published.to_dict())
    return model


def write_bark_small(folder: Path, dtype: torch.dtype = torch.float16, tokens: int = 24) -> Path:
    """Bark small in the hub's layout, 0.8 GB in float16, with the embedded model's tokenizer and no voices.

    Random weights hardly ever end by themselves: what they say ends after `tokens` semantic tokens.
    """
    model = bark_model("bark-small", dtype=dtype)
    model.generation_config.semantic_config["max_new_tokens"] = tokens
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(EMBEDDED / "tiny-bark").save_pretrained(folder)
    return folder


def _any(kind: Any) -> Any:
    return kind
