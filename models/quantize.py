"""Linear layers in 8 or 4 bits by bitsandbytes, for cards that are too small; also on a CPU."""

from __future__ import annotations

from typing import Any

import bitsandbytes.nn
import torch

from models.footprint import QUANTIZED_WIDTH

bnb: Any = bitsandbytes.nn  # its types describe other signatures than it has


def quantize(root: torch.nn.Module, quantization: str, dtype: torch.dtype) -> None:
    """Replaces the linear layers of `root`; their weights shrink when they are moved to their device.

    Convolutions and norms stay as they are, and layers whose width is no multiple of what shares a scale.
    """
    for module in list(root.modules()):
        for name, child in list(module.named_children()):
            if type(child) is torch.nn.Linear and not child.in_features % QUANTIZED_WIDTH:
                setattr(module, name, _shrunk(child, quantization, dtype))


def _shrunk(layer: torch.nn.Linear, quantization: str, dtype: torch.dtype) -> torch.nn.Module:
    bias: Any = layer.bias  # which torch says is never None
    sizes = (layer.in_features, layer.out_features, bias is not None)
    if quantization == "int8":
        made = bnb.Linear8bitLt(*sizes, has_fp16_weights=False)
        made.weight = bnb.Int8Params(layer.weight.data, requires_grad=False, has_fp16_weights=False)
    else:
        made = bnb.Linear4bit(*sizes, compute_dtype=dtype, quant_type="nf4")
        made.weight = bnb.Params4bit(layer.weight.data, requires_grad=False, quant_type="nf4")
    if bias is not None:
        made.bias = bias
    return made
