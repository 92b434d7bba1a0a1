"""Hub, folder or embedded -> a model in memory."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import transformers

from models.catalog import Entry, Modality
from models.protocol import Model, ModelSpec
from models.sources import EMBEDDED, LoadError, find_folder

__all__ = ["EMBEDDED", "LoadError", "find_folder", "load_model", "spec_of"]


def load_model(name: str, entry: Entry, device: str) -> Model[Any, Any]:
    """Loads a model of the catalog on `device` (as torch names it). Raises `LoadError`."""
    spec = spec_of(name, entry, device)
    family = importlib.import_module(f"models.{entry.family}")
    transformers.utils.logging.disable_progress_bar()  # a service's log is no terminal
    try:
        return family.load(spec)
    except (OSError, ValueError) as error:
        raise LoadError(f"The model {name} in {spec.folder} cannot be loaded: {error}") from error


def _automatic(modality: Modality, device: str) -> str:
    """bfloat16 where the hardware multiplies it faster: on a GPU, and pictures on a CPU with AMX."""
    faster = device != "cpu" or (modality is Modality.IMAGE and has_amx())
    return "bfloat16" if faster else "float32"


def has_amx(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether this CPU multiplies matrices of bfloat16 in tiles; False where that cannot be read."""
    try:
        return "amx_bf16" in cpuinfo.read_text(encoding="utf-8").split()
    except OSError:
        return False


def spec_of(name: str, entry: Entry, device: str) -> ModelSpec:
    """Brings the model's files to this machine and says how to load them. Raises `LoadError`."""
    quantization = entry.precision if entry.precision in ("int8", "int4") else None
    automatic = entry.precision == "auto" or quantization is not None
    dtype = _automatic(entry.modality, device) if automatic else entry.precision
    return ModelSpec(
        name=name,
        folder=find_folder(entry.source, entry),
        device=device,
        dtype=dtype,
        quantization=quantization,
        max_rows=entry.max_rows,
        offload=entry.offload,
        lora_memory_bytes=entry.lora_memory_mib << 20,
        safety_checker=entry.safety_checker,
        watermark=entry.watermark,
        metadata=entry.metadata,
        config=find_folder(entry.config, entry) if entry.config is not None else None,
        language=entry.language,
        loudness_lufs=entry.loudness_lufs,
        loras=find_folder(entry.loras, entry) if entry.loras is not None else None,
    )
