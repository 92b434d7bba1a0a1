"""Which engine writes texts, by what the catalog, the settings and this machine say. Imports neither."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping

from models.catalog import Entry
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
    for name, entry in entries.items():
        if entry.precision in ("int8", "int4"):
            return f"{name} is {entry.precision} by bitsandbytes, which vLLM has no more"
        if entry.family != "text.decoder":
            return f"{name} is an encoder-decoder, which vLLM does not serve"
        if entry.offload:
            return f"{name} may keep weights elsewhere (`offload`), by accelerate"
    if len(entries) > 1:
        return "vLLM serves one model a runner"
    if not (importlib.util.find_spec("vllm") is not None if installed is None else installed):
        return "vLLM is not installed"
    return None


def spans_of(entries: Mapping[str, Entry], options: Settings, *, installed: bool | None = None) -> Spans:
    """How the profile's models of text may go on several cards."""
    texts = {name: entry for name, entry in entries.items() if entry.job_kind == "text"}
    if vllm_obstacle(texts, "cuda", options, installed=installed) is None:
        return "by tensors"
    return "by layers" if all(entry.family == "text.decoder" for entry in texts.values()) else ""
