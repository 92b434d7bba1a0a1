"""The spans of a job and of each step that it takes part in; nothing where its request is not traced."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from jobs import Job
from tracing import begin, traceparent

if TYPE_CHECKING:
    from opentelemetry.trace import Span


def job_span(job: Job) -> Span | None:
    """From the job's arrival at its runner to its end."""
    if not job.trace:
        return None
    return begin(f"{job.kind} job", job.trace, {"triptych.job_id": job.id, "triptych.model": job.model or ""})


def end_job(span: Span | None, outcome: str) -> None:
    if span is not None:
        span.set_attribute("triptych.outcome", outcome)
        span.end()


def step_span(span: Span | None, stage: str, rows: int, elapsed_s: float) -> None:
    """One step, which has just ended, of a job that shared it with others: `rows` in all."""
    if span is None:
        return
    ended_s = time.time()
    step = begin(f"step {stage}", traceparent(span), {"triptych.rows": rows}, start_s=ended_s - elapsed_s)
    if step is not None:
        step.end(round(ended_s * 1e9))
