"""vLLM as a runner's backend, with an engine in its place that writes until it is told to end."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from jobs import ErrorKind, Event, Failed, JobError, TextDelta, TextJob
from models.catalog import Entry
from models.protocol import ModelSpec
from models.text.vllm_options import engine_args
from runners.metrics import EngineMetrics
from runners.placement import Placement
from runners.text import TextRunner
from runners.vllm import VllmBackend, vllm_options
from settings import Settings


class Endless:
    """The verbs of `models.text.vllm.VllmText`; a job is known from its first step on."""

    name = "endless"
    ready = True

    def __init__(self) -> None:
        self.loop: asyncio.AbstractEventLoop | None = None
        self._ends: dict[str, asyncio.Event] = {}

    async def start(self) -> None:
        self.loop = asyncio.get_running_loop()

    async def close(self) -> None:
        for end in self._ends.values():
            end.set()

    def cancel(self, job_id: str) -> bool:
        if job_id in self._ends:
            self._ends[job_id].set()
        return job_id in self._ends

    async def events(self, job: TextJob) -> AsyncIterator[Event]:
        self._ends[job.id] = asyncio.Event()
        yield TextDelta(text="more")
        await self._ends[job.id].wait()
        del self._ends[job.id]
        raise JobError(ErrorKind.CANCELLED, "The job was cancelled.")


def order(job_id: str) -> TextJob:
    return TextJob(id=job_id, timeout_s=60, seed=0, prompt="x", max_tokens=1, temperature=0)


async def test_a_job_that_is_cancelled_as_it_comes_ends() -> None:
    engine: Any = Endless()
    backend = VllmBackend(engine, EngineMetrics("text", CollectorRegistry()))
    gate = threading.Event()
    assert engine.loop is not None
    engine.loop.call_soon_threadsafe(gate.wait)  # both come to it at once
    stream = backend.submit(order("goes"))
    backend.cancel("goes")
    gate.set()
    events = await asyncio.wait_for(_read(stream), 30)
    assert isinstance(events[-1], Failed)
    assert events[-1].error is ErrorKind.CANCELLED
    assert not backend.cancel("goes")
    await asyncio.to_thread(backend.close)


async def test_other_models_and_jobs_are_refused_with_the_field() -> None:
    engine: Any = Endless()
    backend = VllmBackend(engine, EngineMetrics("text", CollectorRegistry()))
    other = TextJob(id="o", model="other", timeout_s=60, seed=0, prompt="x", max_tokens=1, temperature=0)
    with pytest.raises(JobError, match="There are: endless") as refused:
        backend.submit(other)
    assert (refused.value.kind, refused.value.param) == (ErrorKind.NOT_FOUND, "model")
    await asyncio.to_thread(backend.close)


def test_it_takes_what_the_plan_gives() -> None:
    settings = Settings.model_validate({"queue_size": 7})
    cards = vllm_options(Placement("cuda:0", 0.4, 1, cards=(0, 1)), settings)
    spec = ModelSpec(name="m", folder=Path("m"), device="cuda:0", dtype="bfloat16", max_rows=24)
    told = engine_args(spec, cards)
    assert (told["gpu_memory_utilization"], told["tensor_parallel_size"]) == (0.4, 2)
    assert (told["max_num_seqs"], told["enforce_eager"], cards.max_waiting) == (24, False, 7)
    assert "enable_lora" not in told
    on_cpu = engine_args(replace(spec, device="cpu", loras=Path("loras")), cards)
    assert (on_cpu["enforce_eager"], on_cpu["enable_lora"]) == (True, True)
    assert "gpu_memory_utilization" not in on_cpu
    assert cards.own_process
    assert not vllm_options(Placement("cpu", 0, 4), settings).own_process


def test_on_a_cpu_it_leaves_a_core_to_the_gateway(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: object())  # as if vLLM were here
    entry = Entry(family="text.decoder", source="embedded:tiny-llama", licence="Apache-2.0")
    runner: Any = None
    threads = [
        TextRunner.inner.cpu_threads(runner, {"one": entry}, Placement("cpu", 0, cores), asked)
        for asked in (Settings(text_engine="vllm"), Settings(text_engine="transformers"))
        for cores in (4, 1)
    ]
    assert threads == [3, 1, 4, 1]


async def _read(stream: Any) -> list[Event]:
    return [event async for event in stream]
