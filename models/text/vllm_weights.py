"""How vLLM is told to load a checkpoint: as it is quantized, or to be quantized as it is loaded."""

from __future__ import annotations

from typing import Any

from models.protocol import ModelSpec
from models.quantized import BITSANDBYTES, GGUF, gguf_file, has_experts, quantized_by

ROWWISE_FP8 = 89
"""NVIDIA's compute capability from which fp8 goes by rows; below, weights alone are fp8."""


def weights_args(spec: ModelSpec, *, capability: int | None = None) -> dict[str, Any]:
    """Arguments of vLLM's engine. Raises `ValueError` for what it has not, and says what has.

    `capability`: an NVIDIA card's, as 89 for 8.9; None elsewhere.
    """
    if spec.offload:
        raise ValueError("offload is our engine's; TRIPTYCH_TEXT_ENGINE=auto chooses it")
    kept = quantized_by(spec.folder)
    if kept == BITSANDBYTES:
        raise ValueError("it is quantized by bitsandbytes, which vLLM has no more; it runs on our engine")
    if kept is not None and spec.quantization is not None:
        raise ValueError(f"it is quantized already ({kept}): its precision is auto, not {spec.quantization}")
    online = _online(spec, capability)
    # What is quantized goes with 16 bits beside it, also on a CPU.
    shrunk = kept is not None or online is not None
    dtype = "bfloat16" if shrunk and spec.dtype == "float32" else spec.dtype
    where = {"model": str(spec.folder)}
    if kept == GGUF:
        where = {"model": str(gguf_file(spec.folder)), "tokenizer": str(spec.folder)}
        if (spec.folder / "config.json").exists():
            where["hf_config_path"] = str(spec.folder)
    return {**where, "dtype": dtype, **({} if online is None else {"quantization": online})}


def _online(spec: ModelSpec, capability: int | None) -> str | None:
    """vLLM's name for how it quantizes at load."""
    match spec.quantization:
        case None:
            return None
        case "fp8":
            old = capability is not None and capability < ROWWISE_FP8
            return "fp8_per_tensor" if old else "fp8_per_channel"
        case "int8" if has_experts(spec.folder):
            return "int8_per_channel_weight_only"
        case "int8":
            raise ValueError("vLLM shrinks only experts to int8, and it has none: fp8, or int8 on our engine")
        case _:
            raise ValueError(f"vLLM has no bitsandbytes any more; {spec.quantization} runs on ours")
