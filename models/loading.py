"""Hub, folder or embedded -> a model in memory."""

from __future__ import annotations

import importlib
from typing import Any

import transformers

from models.catalog import Entry
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


def spec_of(name: str, entry: Entry, device: str) -> ModelSpec:
    """Brings the model's files to this machine and says how to load them. Raises `LoadError`."""
    quantization = entry.precision if entry.precision in ("int8", "int4") else None
    automatic = entry.precision == "auto" or quantization is not None
    dtype = ("float32" if device == "cpu" else "bfloat16") if automatic else entry.precision
    return ModelSpec(
        name=name,
        folder=find_folder(entry.source, entry),
        device=device,
        dtype=dtype,
        quantization=quantization,
        max_rows=entry.max_rows,
        loras=find_folder(entry.loras, entry) if entry.loras is not None else None,
    )
