"""A Stable Diffusion checkpoint in the hub's folder layout: safetensors only, and no code from it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer

from jobs import ErrorKind, JobError
from models.protocol import ModelSpec


@dataclass(frozen=True, slots=True)
class Parts:
    """The modules of a checkpoint on their device, and the numbers that follow from their configs.

    `factor`: pixels a latent stands for, a side. `width`, `height`: the model's own size in pixels.
    `window`: the tokens its text encoder takes. `guidance_width`: of the guidance embedding of a
    distilled UNet, or None. `compiled_unet`: the same UNet compiled, on a GPU only.
    """

    tokenizer: Any
    text_encoder: Any
    unet: Any
    vae: Any
    scheduler_config: dict[str, Any]
    device: torch.device
    dtype: torch.dtype
    compiled_unet: Any = None

    @property
    def factor(self) -> int:
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    @property
    def latent_channels(self) -> int:
        return self.unet.config.in_channels

    @property
    def height(self) -> int:
        return _pair(self.unet.config.sample_size)[0] * self.factor

    @property
    def width(self) -> int:
        return _pair(self.unet.config.sample_size)[1] * self.factor

    @property
    def window(self) -> int:
        return self.text_encoder.config.max_position_embeddings

    @property
    def guidance_width(self) -> int | None:
        return self.unet.config.time_cond_proj_dim

    def side(self, asked: int | None, param: Literal["width", "height"]) -> int:
        """Pixels of a side: the model's own, or what is asked within bounds that follow from it.

        Beyond twice its own size a UNet repeats its motifs. Raises `JobError` with the bounds.
        """
        own = self.width if param == "width" else self.height
        if asked is None:
            return own
        least, most = min(64, own), 2 * own
        if asked % self.factor or not least <= asked <= most:
            message = f"{param} must be a multiple of {self.factor} between {least} and {most} on this model."
            raise JobError(ErrorKind.INVALID, message, param=param)
        return asked


def _pair(size: int | list[int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def load_parts(spec: ModelSpec) -> Parts:
    """Loads `tokenizer`, `text_encoder`, `unet`, `vae` and the scheduler's config from `spec.folder`."""
    if spec.quantization is not None:
        raise ValueError("quantization of pictures' models is not built; leave it out for this model")
    device, dtype = torch.device(spec.device), getattr(torch, spec.dtype)
    parts: dict[str, Any] = {}
    for name, kind, weights in (
        ("text_encoder", CLIPTextModel, "model"),
        ("unet", UNet2DConditionModel, "diffusion_pytorch_model"),
        ("vae", AutoencoderKL, "diffusion_pytorch_model"),
    ):
        folder = spec.folder / name
        if not folder.is_dir():
            # Said here, or the loaders take the path for a name on the hub.
            raise FileNotFoundError(
                f"{spec.name} has no folder {name!r}: not a checkpoint in the hub's layout"
            )
        loader: Any = kind
        part = loader.from_pretrained(
            folder,
            use_safetensors=True,
            local_files_only=True,
            variant=_variant(folder, weights),
            torch_dtype=dtype,
        )
        parts[name] = part.to(device).eval().requires_grad_(False)
    if device.type == "cuda":
        # A CPU gains nothing from the layout at these sizes (measured), and may have no compiler.
        for name in ("unet", "vae"):
            parts[name].to(memory_format=torch.channels_last)
        parts["compiled_unet"] = torch.compile(parts["unet"], dynamic=False)
    config = json.loads((spec.folder / "scheduler" / "scheduler_config.json").read_text(encoding="utf-8"))
    # StableDiffusionPipeline does so too: an offset of 0 is taken for an outdated config.
    config["steps_offset"] = 1
    return Parts(
        tokenizer=CLIPTokenizer.from_pretrained(spec.folder / "tokenizer", local_files_only=True),
        scheduler_config=config,
        device=device,
        dtype=dtype,
        **parts,
    )


def _variant(folder: Path, weights: str) -> str | None:
    """Some checkpoints are published in half precision only, under names of their own."""
    plain = list(folder.glob(f"{weights}.safetensors")) + list(folder.glob(f"{weights}-*.safetensors"))
    return None if plain or not list(folder.glob(f"{weights}*.fp16*.safetensors")) else "fp16"
