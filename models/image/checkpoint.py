"""A Stable Diffusion checkpoint, loaded: safetensors only, and no code from it.

In the hub's folder layout, or as one `.safetensors` file with the original names of its tensors; that has no
configuration and no tokenizer, which come from a checkpoint in the hub's layout beside it (`spec.config`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import accelerate
import torch
from diffusers.loaders.single_file_utils import create_diffusers_clip_model_from_ldm
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from safetensors.torch import load_file
from transformers import CLIPTokenizer

from models.image.parts import Parts
from models.image.safety import load_safety_checker
from models.image.text_encoder import PromptTokenizer, TextEncoder
from models.image.vae import Vae
from models.protocol import ModelSpec
from models.quantize import quantize

Layer = Literal["last", "last but one"]
TextEncoders = Mapping[str, tuple[str, Any, Layer]]
"""By folder: the folder of its tokenizer, its class, and the layer that counts."""


def load_parts(spec: ModelSpec, text_encoders: TextEncoders, *, zero_empty: bool = False) -> Parts:
    """Loads a checkpoint's parts. `zero_empty`: what its family does where `model_index.json` is silent.

    Raises `OSError` or `ValueError` that says what is wrong with the checkpoint.
    """
    device, dtype = torch.device(spec.device), getattr(torch, spec.dtype)
    weights = _weights_of(spec)
    folder = weights.folder
    encoders = tuple(
        TextEncoder(
            name=name,
            module=(module := _placed(weights.text_encoder(name, kind, dtype), spec)),
            tokenizer=_tokenizer(folder / tokenizer, module.config.max_position_embeddings),
            layer=layer,
        )
        for name, (tokenizer, kind, layer) in text_encoders.items()
    )
    unet = weights.module("unet", UNet2DConditionModel, dtype)
    if spec.quantization is not None:
        quantize(unet, spec.quantization, dtype)
    unet = _placed(unet, spec)
    vae = weights.module("vae", AutoencoderKL, dtype)
    if dtype == torch.float16 and vae.config.force_upcast:
        vae = vae.float()  # its activations leave what half precision holds
    vae = _placed(vae, spec)
    return Parts(
        text_encoders=encoders,
        unet=unet,
        vae=Vae(vae, device),
        scheduler_config=_json(folder / "scheduler" / "scheduler_config.json"),
        device=device,
        dtype=dtype,
        compiled_unet=_compiled(unet, vae, spec),
        safety=load_safety_checker(folder, device, dtype) if spec.safety_checker else None,
        zero_empty=bool(_json(folder / "model_index.json").get("force_zeros_for_empty_prompt", zero_empty)),
    )


def _placed(module: Any, spec: ModelSpec) -> Any:
    """On its device; or on the CPU, from where each layer is brought for its own part of a forward."""
    module = module.eval().requires_grad_(False)
    if spec.offload:
        return accelerate.cpu_offload(
            module, execution_device=torch.device(spec.device), offload_buffers=True
        )
    return module.to(spec.device)


def _compiled(unet: Any, vae: Any, spec: ModelSpec) -> Any:
    """The UNet compiled and laid out for a GPU; None where that does not pay.

    A CPU gains nothing from the layout at these sizes (measured), and may have no compiler.
    """
    if torch.device(spec.device).type != "cuda" or spec.offload or spec.quantization is not None:
        return None
    for module in (unet, vae):
        module.to(memory_format=torch.channels_last)
    return torch.compile(unet, dynamic=False)


class _Folder:
    """The hub's layout: a folder for each part."""

    def __init__(self, spec: ModelSpec) -> None:
        self._name = spec.name
        self.folder = spec.folder

    def text_encoder(self, name: str, kind: Any, dtype: torch.dtype) -> Any:
        return self._load(name, kind, "model", dtype)

    def module(self, name: str, kind: Any, dtype: torch.dtype) -> Any:
        return self._load(name, kind, "diffusion_pytorch_model", dtype)

    def _load(self, name: str, kind: Any, weights: str, dtype: torch.dtype) -> Any:
        folder = self.folder / name
        if not folder.is_dir():
            # Said here, or the loaders take the path for a name on the hub.
            raise FileNotFoundError(
                f"{self._name} has no folder {name!r}: not a checkpoint in the hub's layout"
            )
        return kind.from_pretrained(
            folder,
            use_safetensors=True,
            local_files_only=True,
            variant=_variant(folder, weights),
            torch_dtype=dtype,
        )


class _SingleFile:
    """One file, its tensors under their original names, which diffusers translates."""

    def __init__(self, spec: ModelSpec, config: Path) -> None:
        self.folder = config
        self._tensors = load_file(spec.folder)

    def text_encoder(self, name: str, kind: Any, dtype: torch.dtype) -> Any:
        return create_diffusers_clip_model_from_ldm(
            kind,
            dict(self._tensors),
            subfolder=name,
            config=str(self.folder),
            torch_dtype=dtype,
            local_files_only=True,
        )

    def module(self, name: str, kind: Any, dtype: torch.dtype) -> Any:
        return kind.from_single_file(
            dict(self._tensors),
            config=str(self.folder),
            subfolder=name,
            local_files_only=True,
            torch_dtype=dtype,
        )


def _weights_of(spec: ModelSpec) -> _Folder | _SingleFile:
    if not spec.folder.is_file():
        return _Folder(spec)
    if spec.folder.suffix != ".safetensors":
        raise ValueError("of single files only .safetensors are read")
    if spec.config is None:
        raise ValueError(
            "a single file has no configuration and no tokenizer: name a checkpoint of its family in the "
            "hub's layout as the entry's `config`"
        )
    return _SingleFile(spec, spec.config)


def _tokenizer(folder: Path, window: int) -> PromptTokenizer:
    return PromptTokenizer(CLIPTokenizer.from_pretrained(folder, local_files_only=True), window)


def _json(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text(encoding="utf-8"))


def _variant(folder: Path, weights: str) -> str | None:
    """Some checkpoints are published in half precision only, under names of their own."""
    plain = list(folder.glob(f"{weights}.safetensors")) + list(folder.glob(f"{weights}-*.safetensors"))
    return None if plain or not list(folder.glob(f"{weights}*.fp16*.safetensors")) else "fp16"
