"""vLLM as a runner's backend: its engine lives on an event loop of its own, in a thread of its own."""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
import threading
from typing import Any

from jobs import Done, ErrorKind, Failed, Job, JobError, TextJob
from models.catalog import Entry
from models.loading import LoadError, spec_of
from models.text.vllm import VllmText
from models.text.vllm_options import VllmOptions
from runners.failures import CLOSING, INTERNAL, no_such_model
from runners.hosting import crash
from runners.metrics import EngineMetrics
from runners.placement import Placement
from runners.spans import end_job, job_span
from runners.stream import Stream
from runners.ticket import Outcome
from settings import Settings

log = logging.getLogger("triptych.runner")

BUFFERED_EVENTS = 4096
"""vLLM holds a row for no reader: what one has not read waits here, at most one event a token."""

_OUTCOMES = {ErrorKind.CANCELLED: Outcome.CANCELLED, ErrorKind.TIMEOUT: Outcome.LATE}

_WAITING: list[subprocess.Popen[bytes]] = []
"""Their pipes stay open while this process lives."""


def vllm_backend(
    entries: dict[str, Entry], placement: Placement, options: Settings, metrics: EngineMetrics
) -> VllmBackend:
    """Starts vLLM on the one text model of the profile. Raises `models.loading.LoadError`."""
    ((name, entry),) = entries.items()
    end_together()
    try:
        return VllmBackend(
            VllmText(spec_of(name, entry, placement.device), vllm_options(placement, options)), metrics
        )
    except (ImportError, ValueError) as error:
        raise LoadError(f"vLLM cannot serve {name}: {error}") from error


def vllm_options(placement: Placement, options: Settings) -> VllmOptions:
    """What the plan gives it: a part of each of its cards, which share the model; or threads of a CPU."""
    return VllmOptions(
        max_waiting=options.queue_size,
        gpu_memory_fraction=placement.gpu_memory_fraction or 0.9,
        own_process=bool(placement.cards),
        tensor_parallel=max(1, len(placement.cards)),
    )


def end_together() -> None:
    """Starts who ends all of this process's group once it has gone, however it went.

    vLLM's engine lives on without whom it works for, and keeps a GPU's memory from the next one. The
    supervisor makes each runner the leader of a group. That it has gone is told by a pipe that only it holds.
    """
    if os.getpgrp() == os.getpid():
        wait = f"cat > /dev/null; kill -9 -{os.getpid()} 2> /dev/null"
        command = ["/bin/sh", "-c", wait]
        _WAITING.append(subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True))  # noqa: S603


class VllmBackend:
    """`runners.hosting.Backend` over vLLM; safe to call from any thread."""

    def __init__(self, model: VllmText, metrics: EngineMetrics) -> None:
        """Loads the model; returns when it is ready."""
        self._model = model
        self._metrics = metrics
        self._closing = False
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="vllm", daemon=True)
        self._thread.start()
        asyncio.run_coroutine_threadsafe(model.start(), self._loop).result()

    def submit(self, job: Job) -> Stream:
        """The job's events, for a reader on the calling loop. Raises `JobError` for a model not here."""
        if not isinstance(job, TextJob) or job.model not in (None, self._model.name):
            raise no_such_model(job.model, [self._model.name])
        if self._closing:
            raise CLOSING.as_error()
        stream = Stream(BUFFERED_EVENTS, lambda: None)
        self._loop.call_soon_threadsafe(self._start, job, stream)
        return stream

    def cancel(self, job_id: str) -> bool:
        known = job_id in self._tasks
        self._loop.call_soon_threadsafe(self._cancel, job_id)
        return known

    def resident(self) -> list[dict[str, Any]]:
        """Its one model, which stays; what it takes is vLLM's own account."""
        return [{"name": self._model.name, "size_bytes": 0, "leaves_in_s": None}]

    def drain(self, timeout_s: float) -> bool:
        self._closing = True
        return asyncio.run_coroutine_threadsafe(self._drained(timeout_s), self._loop).result()

    def close(self) -> None:
        self._closing = True
        asyncio.run_coroutine_threadsafe(self._model.close(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _start(self, job: TextJob, stream: Stream) -> None:
        task = self._loop.create_task(self._pump(job, stream))
        self._tasks[job.id] = task
        task.add_done_callback(lambda _: self._ended(job.id))
        self._metrics.at_work(len(self._tasks))

    def _cancel(self, job_id: str) -> None:
        """Again while the job's task is there and has not come to tell the model of it."""
        if job_id in self._tasks and not self._model.cancel(job_id):
            self._loop.call_soon(self._cancel, job_id)

    def _ended(self, job_id: str) -> None:
        self._tasks.pop(job_id, None)
        self._metrics.at_work(len(self._tasks))

    async def _pump(self, job: TextJob, stream: Stream) -> None:
        outcome = Outcome.FAILED
        last: Done | Failed = INTERNAL
        span = job_span(job)
        try:
            async for event in self._model.events(job):
                if isinstance(event, Done):
                    outcome, last = Outcome.DONE, event
                    self._metrics.started(event.queue_ms / 1000)
                    self._metrics.worked((event.total_ms - event.queue_ms) / 1000)
                else:
                    stream.put(event)
        except JobError as error:
            refused = error.kind is ErrorKind.OVERLOADED
            outcome = Outcome.REFUSED if refused else _OUTCOMES.get(error.kind, Outcome.FAILED)
            last = Failed.of(error)
        except Exception:
            log.exception("vLLM failed on a job")
        self._metrics.ended(outcome)
        end_job(span, outcome)
        stream.put(last)
        if not self._model.ready and not self._closing:
            crash()

    async def _drained(self, timeout_s: float) -> bool:
        if not self._tasks:
            return True
        _, left = await asyncio.wait(self._tasks.values(), timeout=timeout_s)
        return not left
