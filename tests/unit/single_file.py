"""A checkpoint in the hub's layout, written as one file with the original names of its tensors."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from models.image.original_names import original_name

_VAE = (
    ("mid_block.resnets.0.", "mid.block_1."),
    ("mid_block.resnets.1.", "mid.block_2."),
    ("mid_block.attentions.0.", "mid.attn_1."),
    ("conv_norm_out", "norm_out"),
    ("conv_shortcut", "nin_shortcut"),
    ("group_norm", "norm"),
    (".to_q.", ".q."),
    (".to_k.", ".k."),
    (".to_v.", ".v."),
    (".to_out.0.", ".proj_out."),
)


def write_single_file(folder: Path, target: Path, layers_per_block: int) -> Path:
    """Writes `folder`, a Stable Diffusion 1.x, as `target`."""
    unet = load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")
    vae = load_file(folder / "vae" / "diffusion_pytorch_model.safetensors")
    text = load_file(folder / "text_encoder" / "model.safetensors")
    tensors: dict[str, torch.Tensor] = {}
    for key, tensor in unet.items():
        module, _, kind = key.rpartition(".")
        block = ".".join(key.split(".")[:2])
        attends = any(other.startswith(f"{block}.attentions") for other in unet)
        name = original_name(module, layers_per_block, attends)
        tensors[f"model.diffusion_model.{name}.{kind}"] = tensor
    blocks = 1 + max(int(key.split(".")[2]) for key in vae if key.startswith("decoder.up_blocks."))
    for key, tensor in vae.items():
        name = _vae_name(key, blocks)
        is_attention = ".mid.attn_1." in name and name.endswith("weight") and tensor.dim() == 2
        tensors[f"first_stage_model.{name}"] = tensor[:, :, None, None] if is_attention else tensor
    for key, tensor in text.items():
        tensors["cond_stage_model.transformer.text_model." + key.removeprefix("text_model.")] = tensor
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, target)
    return target


def _vae_name(key: str, blocks: int) -> str:
    for new, old in _VAE:
        key = key.replace(new, old)
    parts = key.split(".")
    if parts[1] in ("down_blocks", "up_blocks"):
        number = int(parts[2]) if parts[1] == "down_blocks" else blocks - 1 - int(parts[2])
        inner = f"block.{parts[4]}" if parts[3] == "resnets" else parts[3].removesuffix("rs")
        return ".".join([parts[0], parts[1].removesuffix("_blocks"), str(number), inner, *parts[5:]])
    return key
