"""What a language model's checkpoint says of its own quantization; no torch, so that commands may ask."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

BITSANDBYTES = "bitsandbytes"
GGUF = "gguf"
GGUF_PLUGIN = "vllm-gguf-plugin"
"""What reads GGUF for vLLM, which does not by itself."""

_EXPERTS = ("num_experts", "moe_num_experts", "n_routed_experts", "num_local_experts")


def quantized_by(folder: Path) -> str | None:
    """The method (`awq`, `gptq`, `fp8`, `compressed-tensors`, `bitsandbytes`, `gguf` ...); None for none."""
    if not any(folder.glob("*.safetensors")) and any(folder.glob("*.gguf")):
        return GGUF
    config = _config(folder)
    said = config.get("quantization_config") or config.get("compression_config") or {}
    if not isinstance(said, dict) or not said:
        return None
    return str(said.get("quant_method") or "compressed-tensors")


def has_experts(folder: Path) -> bool:
    """Whether layers of it are mixtures of experts."""
    config = _config(folder)
    return any(config.get(name) for name in _EXPERTS)


def gguf_file(folder: Path) -> Path:
    """The one file of a GGUF checkpoint, whose tokenizer and config lie beside it. Raises `ValueError`."""
    if importlib.util.find_spec(GGUF_PLUGIN.replace("-", "_")) is None:
        raise ValueError(f"vLLM reads GGUF by a plugin that is not installed: pip install {GGUF_PLUGIN}")
    files = sorted(folder.glob("*.gguf"))
    if len(files) != 1:
        raise ValueError(f"keep one GGUF file: here are {', '.join(file.name for file in files)}")
    return files[0]


def _config(folder: Path) -> dict[str, Any]:
    """Its text model's, where it has others beside; empty where there is none."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        return {**config, **config.get("text_config", {})}
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        return {}  # loading says what is wrong with it
