"""The runner of text: on vLLM where a GPU has it, or on our step engine with transformers."""

from __future__ import annotations

import importlib.util

import bentoml

from jobs import Job, TextJob
from models.catalog import Entry, Modality
from runners.hosting import SERVICE, Backend, Runner
from runners.placement import Placement
from settings import Settings


@bentoml.service(name="TextRunner", **SERVICE)
class TextRunner(Runner):
    modality = Modality.TEXT

    def build(self, entries: dict[str, Entry], placement: Placement, options: Settings) -> Backend:
        if wants_vllm(entries, placement, options):
            from runners.vllm import vllm_backend

            return vllm_backend(entries, placement, options)
        from runners.stepping import step_engine

        return step_engine(self.modality, entries, placement, options)

    def warm_up_job(self) -> Job:
        return TextJob(id="warm-up", timeout_s=600, seed=0, prompt="Hello", max_tokens=4, temperature=0)


def wants_vllm(entries: dict[str, Entry], placement: Placement, options: Settings) -> bool:
    if options.text_engine == "auto":
        # vLLM has no bitsandbytes: a model that fits only when quantized runs on ours.
        plain = all(entry.precision not in ("int8", "int4") for entry in entries.values())
        return plain and placement.device != "cpu" and importlib.util.find_spec("vllm") is not None
    return options.text_engine == "vllm"
