"""Jobs of one stateless call (embeddings, classification), batched whole by BentoML, each with its own end.

BentoML's batching hands over what has gathered as one list, and what the call raises is raised to all of its
callers. So nothing is raised here: each job's outcome is its own `Done` or `Failed`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from pydantic import ValidationError

from jobs import Done, Failed, Job, WholeJob, decode_job, encode_event
from models.protocol import WholeModel
from runners.failures import UNKNOWN_JOB, isolated, no_such_model
from runners.metrics import EngineMetrics
from runners.residency import Residency
from runners.spans import end_job, job_span
from runners.ticket import Outcome

log = logging.getLogger("triptych.runner")

End = Done | Failed


class WholeCalls:
    """The stateless models of a runner. `models` may have others too; `kinds`: the kind of job of each."""

    def __init__(self, models: Residency, kinds: dict[str, str], metrics: EngineMetrics) -> None:
        self._models = models
        self._kinds = kinds
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="whole-calls")
        self._metrics = {kind: metrics.of(kind) for kind in kinds.values()}

    async def answer(self, jobs: Sequence[str]) -> list[str]:
        """Takes jobs as ASCII JSON, gives the last event of each."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self.answered, jobs)

    def answered(self, jobs: Sequence[str]) -> list[str]:
        """`answer` on the calling thread; on one thread at a time."""
        started = time.monotonic()
        ends: list[End | None] = [None] * len(jobs)
        known: dict[str, list[tuple[int, WholeJob]]] = {}
        for place, line in enumerate(jobs):
            named = isolated(lambda line=line: self._named(line))
            if isinstance(named, Failed):
                ends[place] = named
            else:
                known.setdefault(named[0], []).append((place, named[1]))
        for name, asked in known.items():
            told = self._of_model(name, [job for _, job in asked], started)
            for (place, _), end in zip(asked, told, strict=True):
                ends[place] = end
        return [encode_event(end or UNKNOWN_JOB) for end in ends]

    def resident(self) -> list[dict[str, Any]]:
        return [each for each in self._models.resident() if each["name"] in self._kinds]

    def _named(self, line: str) -> tuple[str, WholeJob]:
        """A job and the model that is to answer it. Raises `JobError`."""
        try:
            job: Job = decode_job(line)
        except ValidationError:
            raise UNKNOWN_JOB.as_error() from None
        if not isinstance(job, WholeJob):
            raise UNKNOWN_JOB.as_error()
        names = [name for name, kind in self._kinds.items() if kind == job.kind]
        if not names or job.model not in (None, *names):
            raise no_such_model(job.model, names)
        return job.model or names[0], job

    def _of_model(self, name: str, jobs: Sequence[WholeJob], started: float) -> list[End]:
        spans = [job_span(job) for job in jobs]
        ends = self._with_model(name, jobs, started)
        metrics = self._metrics[self._kinds[name]]
        for span, end in zip(spans, ends, strict=True):
            outcome = Outcome.DONE if isinstance(end, Done) else Outcome.FAILED
            metrics.ended(outcome)
            end_job(span, outcome)
            if isinstance(end, Done):
                metrics.started(end.queue_ms / 1e3)
                metrics.worked((end.total_ms - end.queue_ms) / 1e3)
        return ends

    def _with_model(self, name: str, jobs: Sequence[WholeJob], started: float) -> list[End]:
        deadline = started + min(job.timeout_s for job in jobs)
        model = isolated(lambda: self._models.borrow(name, lambda: time.monotonic() < deadline))
        if isinstance(model, Failed):
            return [model] * len(jobs)
        try:
            return self._answers(model, jobs, started)
        finally:
            kept = [job.keep_alive_s for job in jobs if job.keep_alive_s is not None]
            self._models.give_back(name, kept[-1] if kept else None)

    def _answers(self, model: WholeModel[Any, Any], jobs: Sequence[WholeJob], started: float) -> list[End]:
        ends: dict[int, End] = {}
        rows: list[tuple[int, Any]] = []
        for place, job in enumerate(jobs):
            row = isolated(lambda job=job: model.prepare(job))
            if isinstance(row, Failed):
                ends[place] = row
            else:
                rows.append((place, row))
        began = time.monotonic()
        for place, result in self._results(model, rows):
            if isinstance(result, Failed):
                ends[place] = result
            else:
                queue_ms, total_ms = (began - started) * 1e3, (time.monotonic() - started) * 1e3
                ends[place] = Done(result=result, queue_ms=queue_ms, total_ms=total_ms)
        return [ends[place] for place in range(len(jobs))]

    def _results(
        self, model: WholeModel[Any, Any], rows: Sequence[tuple[int, Any]]
    ) -> Iterable[tuple[int, Any]]:
        """Of each place the result or failure: what fails together is tried by halves."""
        if not rows:
            return
        began = time.monotonic()
        results = isolated(lambda: model.answer([row for _, row in rows]))
        if not isinstance(results, Failed):
            kind = self._kinds[model.name]
            self._metrics[kind].stepped(kind, time.monotonic() - began, len(rows))
            yield from zip((place for place, _ in rows), results, strict=True)
        elif len(rows) == 1:
            yield rows[0][0], results
        else:
            half = len(rows) // 2
            yield from self._results(model, rows[:half])
            yield from self._results(model, rows[half:])
