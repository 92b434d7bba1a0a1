"""The runner of text: on vLLM where a GPU has it, or on our step engine with transformers.

Embeddings and classification are stateless calls: they go past both, through BentoML's own batching.
"""

from __future__ import annotations

import logging
from typing import Any

import bentoml

from jobs import Failed, Job, JobError, TextJob, encode_event
from models.catalog import Entry, Modality
from runners.hosting import SERVICE, Backend, Runner
from runners.placement import Placement
from runners.text_engine import not_served, vllm_obstacle
from runners.whole import WholeCalls
from settings import Settings

log = logging.getLogger("triptych.runner")


MOST_JOBS = 32
"""Whole calls in one batch."""
PATIENCE_MS = 600_000
"""BentoML drops what waits for longer than this; a job's own deadline is kept by the gateway."""


@bentoml.service(name="TextRunner", **SERVICE)
class TextRunner(Runner):
    modality = Modality.TEXT

    def __init__(self) -> None:
        self._whole: WholeCalls | None = None
        super().__init__()

    def build(self, entries: dict[str, Entry], placement: Placement, options: Settings) -> Backend:
        from models.sources import LoadError
        from runners.metrics import EngineMetrics
        from runners.stepping import engine_over, loaded_models

        texts = {name: entry for name, entry in entries.items() if entry.job_kind == "text"}
        others = {name: entry for name, entry in entries.items() if name not in texts}
        obstacle = vllm_obstacle(texts, placement.device, options) if texts else "no model writes texts"
        if obstacle is None and (why := not_served(texts)):
            raise LoadError(f"TRIPTYCH_TEXT_ENGINE=vllm cannot be: {why}; auto runs them on our engine.")
        models = loaded_models(entries if obstacle else others, placement, options)
        metrics = EngineMetrics(self.modality, replica=placement.replica)
        kinds = {name: entry.job_kind for name, entry in others.items()}
        self._whole = WholeCalls(models, kinds, metrics)
        if obstacle is None:
            from runners.vllm import vllm_backend

            log.info("Text runs on vLLM")
            return vllm_backend(texts, placement, options, metrics)
        log.info("Text runs on transformers: %s", obstacle)
        return engine_over(models, metrics, texts, options)

    def cpu_threads(self, entries: dict[str, Entry], placement: Placement, options: Settings) -> int:
        """vLLM's spin on while they have nothing to do: one core is left to the gateway."""
        texts = {name: entry for name, entry in entries.items() if entry.job_kind == "text"}
        on_vllm = texts and vllm_obstacle(texts, placement.device, options) is None
        return max(1, placement.cpu_threads - 1) if on_vllm else placement.cpu_threads

    def warm_up_job(self, entries: dict[str, Entry]) -> Job | None:
        if all(entry.job_kind != "text" for entry in entries.values()):
            return None
        return TextJob(id="warm-up", timeout_s=600, seed=0, prompt="Hello", max_tokens=4, temperature=0)

    @bentoml.api(batchable=True, max_batch_size=MOST_JOBS, max_latency_ms=PATIENCE_MS)
    async def answer(self, jobs: list[str]) -> list[str]:
        """Takes stateless jobs as ASCII JSON, gives the last event of each as a line of ASCII JSON."""
        try:
            self.ready_backend()
        except JobError as error:
            return [encode_event(Failed.of(error))] * len(jobs)
        return [] if self._whole is None else await self._whole.answer(jobs)

    def resident(self) -> list[dict[str, Any]]:
        models = super().resident()
        told = {each["name"] for each in models}
        others = [] if self._whole is None else self._whole.resident()
        return [*models, *(each for each in others if each["name"] not in told)]
