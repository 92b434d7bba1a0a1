"""The runner of text: on vLLM where a GPU has it, or on our step engine with transformers."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Mapping

import bentoml

from jobs import Job, TextJob
from models.catalog import Entry, Modality
from runners.hosting import SERVICE, Backend, Runner
from runners.placement import Placement
from settings import Settings

log = logging.getLogger("triptych.runner")


@bentoml.service(name="TextRunner", **SERVICE)
class TextRunner(Runner):
    modality = Modality.TEXT

    def build(self, entries: dict[str, Entry], placement: Placement, options: Settings) -> Backend:
        obstacle = vllm_obstacle(entries, placement, options)
        if obstacle is None:
            from runners.vllm import vllm_backend

            log.info("Text runs on vLLM")
            return vllm_backend(entries, placement, options)
        from runners.stepping import step_engine

        log.info("Text runs on transformers: %s", obstacle)
        return step_engine(self.modality, entries, placement, options)

    def warm_up_job(self) -> Job:
        return TextJob(id="warm-up", timeout_s=600, seed=0, prompt="Hello", max_tokens=4, temperature=0)


def vllm_obstacle(entries: Mapping[str, Entry], placement: Placement, options: Settings) -> str | None:
    """Why text does not run on vLLM; None when it does, because it is asked for or nothing is in its way."""
    if options.text_engine == "vllm":
        return None
    if options.text_engine == "transformers":
        return "TRIPTYCH_TEXT_ENGINE asks for it"
    if placement.device == "cpu":
        return "on a CPU vLLM takes a minute to be ready; TRIPTYCH_TEXT_ENGINE=vllm asks for it all the same"
    for name, entry in entries.items():
        if entry.precision in ("int8", "int4"):
            return f"{name} is {entry.precision} by bitsandbytes, which vLLM has no more"
        if entry.family != "text.decoder":
            return f"{name} is an encoder-decoder, which vLLM does not serve"
    if len(entries) > 1:
        return "vLLM serves one model a runner"
    if importlib.util.find_spec("vllm") is None:
        return "vLLM is not installed"
    return None
