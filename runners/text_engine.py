"""Which engine writes texts, by what the catalog, the settings and this machine say. Imports neither."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path

from models.catalog import QUANTIZED, Entry
from models.protocol import ModelSpec
from models.quantized import BITSANDBYTES, GGUF, GGUF_PLUGIN, has_experts, quantized_by
from models.sources import local_folder
from models.text.vllm_weights import weights_args
from runners.plan import Spans
from settings import Settings


def vllm_obstacle(
    entries: Mapping[str, Entry], device: str, options: Settings, *, installed: bool | None = None
) -> str | None:
    """Why text does not run on vLLM; None when it does, because it is asked for or nothing is in its way.

    `device` as torch names it. `installed`: whether vLLM is; None for what is so here.
    """
    if options.text_engine == "vllm":
        return None
    if options.text_engine == "transformers":
        return "TRIPTYCH_TEXT_ENGINE asks for it"
    if device == "cpu":
        return "on a CPU vLLM takes a minute to be ready; TRIPTYCH_TEXT_ENGINE=vllm asks for it all the same"
    if why := models_obstacle(entries):
        return why
    if not (importlib.util.find_spec("vllm") is not None if installed is None else installed):
        return "vLLM is not installed"
    return None


def not_served(entries: Mapping[str, Entry]) -> str | None:
    """Why vLLM cannot serve these however it is told to; what else a checkpoint wants is `vllm_refusal`'s."""
    for name, entry in entries.items():
        if entry.family != "text.decoder":
            return f"{name} is an encoder-decoder, which vLLM does not serve"
    if len(entries) > 1:
        return f"vLLM serves one model a runner, and the profile has {', '.join(entries)}"
    return None


def models_obstacle(entries: Mapping[str, Entry]) -> str | None:
    """What vLLM cannot do of what the catalog wants; None when it can do all."""
    for name, entry in entries.items():
        if why := not_served({name: entry}):
            return why
        if entry.offload:
            return f"{name} may keep weights elsewhere (`offload`), by accelerate"
        folder = local_folder(entry.source, entry)
        if folder is not None and quantized_by(folder) == BITSANDBYTES:
            return f"{name} is quantized by bitsandbytes, which vLLM has no more"
        if entry.precision == "int8" and folder is not None and has_experts(folder):
            continue  # which vLLM shrinks, and bitsandbytes does not
        if entry.precision in ("int8", "int4"):
            return f"{name} is {entry.precision} by bitsandbytes, which vLLM has no more"
    return not_served(entries)


def ours_obstacle(entry: Entry) -> str | None:
    """What our engine cannot do of what the catalog wants and the checkpoint is; None when it can."""
    folder = local_folder(entry.source, entry)
    kept = None if folder is None else quantized_by(folder)
    if kept not in (None, BITSANDBYTES):
        return f"it is quantized by {kept}, which only vLLM reads{_with_plugin(kept)}"
    return "fp8 is vLLM's" if entry.precision == "fp8" else None


def vllm_refusal(entry: Entry, folder: Path) -> str | None:
    """Why vLLM would not load it; None when it would begin to."""
    quantization = entry.precision if entry.precision in QUANTIZED else None
    try:
        weights_args(ModelSpec(name="", folder=folder, quantization=quantization, offload=entry.offload))
    except ValueError as error:
        return str(error)
    return None


def _with_plugin(kept: str | None) -> str:
    return f" (with {GGUF_PLUGIN})" if kept == GGUF else ""


def spans_of(entries: Mapping[str, Entry], options: Settings, *, installed: bool | None = None) -> Spans:
    """How the profile's models of text may go on several cards."""
    texts = written(entries)
    if vllm_obstacle(texts, "cuda", options, installed=installed) is None:
        return "by tensors"
    return "by layers" if all(entry.family == "text.decoder" for entry in texts.values()) else ""


def engine_note(
    entries: Mapping[str, Entry], options: Settings, *, installed: bool | None = None
) -> str | None:
    """What a plan says where `auto` would take vLLM, were it not for the models; else None."""
    texts = written(entries)
    why = models_obstacle(texts)
    if why is None or vllm_obstacle(texts, "cuda", options, installed=installed) != why:
        return None
    here = importlib.util.find_spec("vllm") is not None if installed is None else installed
    return f"text runs on transformers, not on vLLM: {why}." if here else None


def written(entries: Mapping[str, Entry]) -> dict[str, Entry]:
    """Those that write texts, which an engine steps."""
    return {name: entry for name, entry in entries.items() if entry.job_kind == "text"}
