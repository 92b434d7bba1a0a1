"""What LoRA files call the layers of a picture model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from models.image.original_names import original_name
from models.lora.files import Layer, layers_of

_TEXT = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}
_OLD_ATTENTION = {"unet": {"to_out": "to_out.0"}, "text_encoder": _TEXT, "text_encoder_2": _TEXT}
"""What attention layers were called in diffusers' first LoRA layout, and are called in the modules."""
_KOHYA = {
    "unet": ("lora_unet_",),
    "text_encoder": ("lora_te_", "lora_te1_"),
    "text_encoder_2": ("lora_te2_",),
}


def layer_names(parts: Mapping[str, torch.nn.Module]) -> dict[str, Layer]:
    """Every spelling of every layer, of a checkpoint's modules by name (`unet`, `text_encoder`)."""
    names = {spelling: layer for layer in layers_of(parts) for spelling in _spellings(*layer)}
    return names | dict(_original_spellings(parts["unet"]))


def _spellings(part: str, path: str) -> Iterator[str]:
    """What LoRA files call a layer: diffusers, peft, kohya, and diffusers' first layout."""
    roots = ("",) if part == "unet" else ("", "text_model.")
    path = path.removeprefix("text_model.")
    for root in roots:
        yield f"{part}.{root}{path}"
        if part != "text_encoder_2":  # which of the two a name without its part means, nobody can say
            yield f"base_model.model.{root}{path}"
            yield f"{root}{path}"
        for kohya in _KOHYA[part]:
            yield kohya + f"{root}{path}".replace(".", "_")
        for old, new in _OLD_ATTENTION[part].items():
            if path.endswith(f".{new}"):
                yield f"{part}.{root}{path.removesuffix(new)}{old}"
        if part == "unet" and ".to_" in path:
            attention, _, layer = path.rpartition(".to_")
            yield f"unet.{attention}.processor.to_{layer.removesuffix('.0')}"


def _original_spellings(unet: Any) -> Iterator[tuple[str, Layer]]:
    """kohya's names for SDXL, which keep the original ones of the blocks."""
    modules = dict(unet.named_modules())
    for path, module in modules.items():
        if isinstance(module, torch.nn.Linear | torch.nn.Conv2d):
            block = ".".join(path.split(".")[:2])
            attends = f"{block}.attentions" in modules
            name = original_name(path, unet.config.layers_per_block, attends)
            if name is not None:
                yield "lora_unet_" + name.replace(".", "_"), ("unet", path)
