"""What a UNet's layers were called in Stable Diffusion's original code: files of SDXL still speak so."""

from __future__ import annotations

import re

_BLOCK = re.compile(
    r"(?P<side>down|mid|up)_blocks?\.(?:(?P<block>\d+)\.)?"
    r"(?P<kind>resnets|attentions|downsamplers|upsamplers)\.(?P<layer>\d+)\.(?P<rest>.+)"
)
_IN_RESNET = {
    "conv1": "in_layers.2",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
    "norm1": "in_layers.0",
    "norm2": "out_layers.0",
}
_OUTSIDE = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}


def original_name(path: str, layers_per_block: int, attends: bool) -> str | None:
    """The original name of a module of diffusers' UNet; None for one that had none.

    Every resnet is a block there, and every sampler; `attends`: whether the module's block has attention,
    which comes between its resnets and its upsampler.
    """
    if path in _OUTSIDE:
        return _OUTSIDE[path]
    found = _BLOCK.fullmatch(path)
    if found is None:
        return None
    kind, layer, rest = found["kind"], int(found["layer"]), found["rest"]
    if kind == "resnets":
        rest = _IN_RESNET.get(rest, rest)
    within = {"resnets": 0, "attentions": 1, "downsamplers": 0, "upsamplers": 2 if attends else 1}[kind]
    if found["side"] == "mid":
        return f"middle_block.{2 * layer if kind == 'resnets' else 1}.{rest}"
    first = int(found["block"]) * (layers_per_block + 1)
    if found["side"] == "down":
        sampler = kind == "downsamplers"
        number = first + 1 + (layers_per_block if sampler else layer)
        return f"input_blocks.{number}.{within}.{'op' if sampler else rest}"
    number = first + (layers_per_block if kind == "upsamplers" else layer)
    return f"output_blocks.{number}.{within}.{rest}"
