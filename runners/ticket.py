"""A job at work in the engine, and the pace at which jobs get done."""

from __future__ import annotations

import itertools
import time
from enum import StrEnum
from typing import Any

from jobs import Done, Job, Result
from models.protocol import Lane
from runners.spans import job_span
from runners.stream import Stream

_numbers = itertools.count()


class Outcome(StrEnum):
    DONE = "done"
    CANCELLED = "cancelled"
    LATE = "late"
    FAILED = "failed"
    REFUSED = "refused"


class Ticket:
    """One job from arrival to end; times are `time.monotonic()` seconds."""

    __slots__ = (
        "arrived",
        "deadline",
        "ended",
        "first_step",
        "in_pool",
        "job",
        "lane",
        "model",
        "model_name",
        "number",
        "queued",
        "row",
        "span",
        "stream",
        "turn",
    )

    def __init__(self, job: Job, model_name: str, stream: Stream) -> None:
        self.job = job
        self.model_name = model_name
        self.model: Any = None  # the model itself, while the job has borrowed it
        self.stream = stream
        self.span = job_span(job)
        self.number = next(_numbers)
        self.turn = 0.0  # its place in the queue: see `runners.fair`
        self.arrived = time.monotonic()
        self.deadline = self.arrived + job.timeout_s
        self.row: Any = None
        self.lane: Lane | None = None
        self.first_step: float | None = None
        self.queued = True  # counts against the queue's bound
        self.in_pool = True  # a pool works on the row: it cannot be released yet
        self.ended = False  # the reader has had the last word

    def done(self, result: Result) -> Done:
        now = time.monotonic()
        first_step = self.first_step if self.first_step is not None else now
        return Done(
            result=result,
            queue_ms=round((first_step - self.arrived) * 1000, 3),
            total_ms=round((now - self.arrived) * 1000, 3),
        )


class Pace:
    """Predicts a wait from the time between two results while the engine is busy."""

    def __init__(self) -> None:
        self._interval_s = 1.0
        self._last: float | None = None

    def done(self) -> None:
        now = time.monotonic()
        if self._last is not None:
            self._interval_s += 0.2 * (now - self._last - self._interval_s)
        self._last = now

    def pause(self) -> None:
        """The engine is idle: the time until the next result says nothing."""
        self._last = None

    def predict_s(self, jobs_before: int) -> float:
        return jobs_before * self._interval_s

    def wait_s(self, jobs_before: int) -> float:
        """For who is refused: when to come again."""
        return min(max(1.0, self.predict_s(jobs_before)), 60.0)
