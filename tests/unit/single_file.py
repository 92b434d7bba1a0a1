"""A checkpoint in the hub's layout, written as one file with the original names of its tensors."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from models.image.original_names import original_name

_IN_VAE = (
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


_OPEN_CLIP = (
    ("text_model.embeddings.position_embedding.weight", "positional_embedding"),
    ("text_model.embeddings.token_embedding", "token_embedding"),
    ("text_model.final_layer_norm", "ln_final"),
    ("text_model.encoder.layers", "transformer.resblocks"),
    ("layer_norm1", "ln_1"),
    ("layer_norm2", "ln_2"),
    ("mlp.fc1", "mlp.c_fc"),
    ("mlp.fc2", "mlp.c_proj"),
    ("self_attn.out_proj", "attn.out_proj"),
)


def write_single_file(folder: Path, target: Path, layers_per_block: int) -> Path:
    """Writes `folder`, a Stable Diffusion 1.x or XL, as `target`."""
    tensors = _unet(folder, layers_per_block) | _vae(folder)
    is_xl = (folder / "text_encoder_2").is_dir()
    prefix = "conditioner.embedders.0" if is_xl else "cond_stage_model"
    for key, tensor in load_file(folder / "text_encoder" / "model.safetensors").items():
        tensors[f"{prefix}.transformer.text_model.{key.removeprefix('text_model.')}"] = tensor
    if is_xl:
        tensors |= _open_clip(folder)
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, target)
    return target


def _unet(folder: Path, layers_per_block: int) -> dict[str, torch.Tensor]:
    unet = load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")
    tensors: dict[str, torch.Tensor] = {}
    for key, tensor in unet.items():
        module, _, kind = key.rpartition(".")
        block = ".".join(key.split(".")[:2])
        attends = any(other.startswith(f"{block}.attentions") for other in unet)
        name = original_name(module, layers_per_block, attends)
        tensors[f"model.diffusion_model.{name}.{kind}"] = tensor
    return tensors


def _vae(folder: Path) -> dict[str, torch.Tensor]:
    vae = load_file(folder / "vae" / "diffusion_pytorch_model.safetensors")
    blocks = 1 + max(int(key.split(".")[2]) for key in vae if key.startswith("decoder.up_blocks."))
    tensors: dict[str, torch.Tensor] = {}
    for key, tensor in vae.items():
        name = _vae_name(key, blocks)
        is_attention = ".mid.attn_1." in name and name.endswith("weight") and tensor.dim() == 2
        tensors[f"first_stage_model.{name}"] = tensor[:, :, None, None] if is_attention else tensor
    return tensors


def _open_clip(folder: Path) -> dict[str, torch.Tensor]:
    """XL's second text encoder, whose queries, keys and values are one matrix there."""
    text = load_file(folder / "text_encoder_2" / "model.safetensors")
    tensors = {"text_projection": text.pop("text_projection.weight").T}
    for key in [key for key in text if ".q_proj." in key]:
        parts = [text.pop(key.replace(".q_proj.", f".{which}_proj.")) for which in "qkv"]
        text[key.replace(".self_attn.q_proj.", ".attn.in_proj_")] = torch.cat(parts)
    for key, tensor in text.items():
        name = key
        for new, old in _OPEN_CLIP:
            name = name.replace(new, old)
        tensors[name] = tensor
    return {f"conditioner.embedders.1.model.{name}": tensor for name, tensor in tensors.items()}


def _vae_name(key: str, blocks: int) -> str:
    for new, old in _IN_VAE:
        key = key.replace(new, old)
    parts = key.split(".")
    if parts[1] in ("down_blocks", "up_blocks"):
        number = int(parts[2]) if parts[1] == "down_blocks" else blocks - 1 - int(parts[2])
        inner = f"block.{parts[4]}" if parts[3] == "resnets" else parts[3].removesuffix("rs")
        return ".".join([parts[0], parts[1].removesuffix("_blocks"), str(number), inner, *parts[5:]])
    return key
