"""Hub, folder or embedded -> a model in memory."""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import transformers
from safetensors import SafetensorError, safe_open

from models.catalog import QUANTIZED, Entry
from models.footprint import memory_of
from models.manifest import check
from models.precision import automatic
from models.protocol import ModelSpec
from models.sources import EMBEDDED, LoadError, find_folder

__all__ = ["EMBEDDED", "LoadError", "find_folder", "load_model", "spec_of", "weight_bytes"]


def load_model(name: str, entry: Entry, device: str, room: Mapping[str, int] | None = None) -> Any:
    """A `Model` or `WholeModel` of the catalog on `device` (as torch names it), laid over those of `room`.

    Raises `LoadError`.
    """
    spec = replace(spec_of(name, entry, device), room=room or {})
    if wrong := _wrong_files(spec.folder):
        raise LoadError(f"The model {name} in {spec.folder} is broken: {'; '.join(wrong)}.")
    family = importlib.import_module(f"models.{entry.family}")
    transformers.utils.logging.disable_progress_bar()  # a service's log is no terminal
    try:
        return family.load(spec)
    except (OSError, ValueError) as error:
        raise LoadError(f"The model {name} in {spec.folder} cannot be loaded: {error}") from error


@cache
def _wrong_files(folder: Path) -> tuple[str, ...]:
    """Once a process: where there is a manifest, every file is read for it."""
    return tuple(check(folder))


def weight_bytes(entry: Entry, device: str) -> int:
    """What its weights take in memory, by the catalog's figures or else its files; 0 where neither tells."""
    each = {"float32": 4, "bfloat16": 2, "float16": 2}[dtype_of(entry, device)]
    memory = memory_of(entry)
    if memory is None:
        return 0 if entry.source.startswith("hub:") else each * _parameters(find_folder(entry.source, entry))
    shrunk = memory.quantizable if entry.precision in QUANTIZED else 0
    shrunk_bytes = shrunk // 2 if entry.precision == "int4" else shrunk
    return each * (memory.parameters - shrunk) + shrunk_bytes + memory.packed_bytes


def _parameters(folder: Path) -> int:
    files = [folder] if folder.is_file() else sorted(folder.rglob("*.safetensors"))
    total = 0
    for file in files:
        with (
            suppress(OSError, SafetensorError),
            safe_open(file, "pt") as tensors,
        ):  # loading says what is wrong
            total += sum(math.prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())  # noqa: SIM118
    return total


def dtype_of(entry: Entry, device: str) -> str:
    """The precision of what is not quantized, as torch names it."""
    if entry.precision in ("auto", *QUANTIZED):
        return automatic(entry.modality, device)
    return entry.precision


def spec_of(name: str, entry: Entry, device: str) -> ModelSpec:
    """Brings the model's files to this machine and says how to load them. Raises `LoadError`."""
    quantization = entry.precision if entry.precision in QUANTIZED else None
    return ModelSpec(
        name=name,
        folder=find_folder(entry.source, entry),
        device=device,
        dtype=dtype_of(entry, device),
        quantization=quantization,
        max_rows=entry.max_rows,
        offload=entry.offload,
        lora_memory_bytes=entry.lora_memory_mib << 20,
        safety_checker=entry.safety_checker,
        watermark=entry.watermark,
        metadata=entry.metadata,
        guidance_scale=entry.guidance_scale,
        config=find_folder(entry.config, entry) if entry.config is not None else None,
        language=entry.language,
        prompts=entry.prompts,
        loudness_lufs=entry.loudness_lufs,
        loras=find_folder(entry.loras, entry) if entry.loras is not None else None,
    )
