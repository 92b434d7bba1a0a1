"""A Stable Diffusion checkpoint in the hub's folder layout, loaded: safetensors only, and no code from it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer

from models.image.parts import Parts
from models.image.text_encoder import PromptTokenizer, TextEncoder
from models.image.vae import Vae
from models.protocol import ModelSpec

Layer = Literal["last", "last but one"]


def load_parts(
    spec: ModelSpec,
    text_encoders: Mapping[str, tuple[str, Any, Layer]],
) -> Parts:
    """Loads a checkpoint's parts from `spec.folder`.

    `text_encoders`: by folder, the folder of its tokenizer, its class and the layer that counts.
    Raises `OSError` or `ValueError` that says what is wrong with the checkpoint.
    """
    device, dtype = torch.device(spec.device), getattr(torch, spec.dtype)
    if spec.quantization is not None:
        raise ValueError("quantization of pictures' models is not built; leave it out for this model")
    encoders = tuple(
        TextEncoder(
            name=name,
            module=(module := _load(spec, name, kind, "model", dtype).to(device)),
            tokenizer=_tokenizer(spec.folder / tokenizer, module.config.max_position_embeddings),
            layer=layer,
        )
        for name, (tokenizer, kind, layer) in text_encoders.items()
    )
    unet = _load(spec, "unet", UNet2DConditionModel, "diffusion_pytorch_model", dtype).to(device)
    vae = _load(spec, "vae", AutoencoderKL, "diffusion_pytorch_model", dtype)
    if dtype == torch.float16 and vae.config.force_upcast:
        vae = vae.float()  # its activations leave what half precision holds
    vae = vae.to(device)
    compiled = None
    if device.type == "cuda":
        # A CPU gains nothing from the layout at these sizes (measured), and may have no compiler.
        unet, vae = (module.to(memory_format=torch.channels_last) for module in (unet, vae))
        compiled = torch.compile(unet, dynamic=False)
    return Parts(
        text_encoders=encoders,
        unet=unet,
        vae=Vae(vae, device),
        scheduler_config=_json(spec.folder / "scheduler" / "scheduler_config.json"),
        device=device,
        dtype=dtype,
        compiled_unet=compiled,
        zero_empty=bool(_json(spec.folder / "model_index.json").get("force_zeros_for_empty_prompt")),
    )


def load_stable_diffusion(spec: ModelSpec) -> Parts:
    """Stable Diffusion 1.x or 2.x. Raises as `load_parts`."""
    parts = load_parts(spec, {"text_encoder": ("tokenizer", CLIPTextModel, "last")})
    # StableDiffusionPipeline does so too: an offset of 0 is taken for an outdated config.
    parts.scheduler_config["steps_offset"] = 1
    return parts


def _load(spec: ModelSpec, name: str, kind: Any, weights: str, dtype: torch.dtype) -> Any:
    folder = spec.folder / name
    if not folder.is_dir():
        # Said here, or the loaders take the path for a name on the hub.
        raise FileNotFoundError(f"{spec.name} has no folder {name!r}: not a checkpoint in the hub's layout")
    part = kind.from_pretrained(
        folder,
        use_safetensors=True,
        local_files_only=True,
        variant=_variant(folder, weights),
        torch_dtype=dtype,
    )
    return part.eval().requires_grad_(False)


def _tokenizer(folder: Path, window: int) -> PromptTokenizer:
    return PromptTokenizer(CLIPTokenizer.from_pretrained(folder, local_files_only=True), window)


def _json(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text(encoding="utf-8"))


def _variant(folder: Path, weights: str) -> str | None:
    """Some checkpoints are published in half precision only, under names of their own."""
    plain = list(folder.glob(f"{weights}.safetensors")) + list(folder.glob(f"{weights}-*.safetensors"))
    return None if plain or not list(folder.glob(f"{weights}*.fp16*.safetensors")) else "fp16"
