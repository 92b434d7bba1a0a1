"""What the three endpoints' answers share."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import TypeVar

from jobs import Done, ErrorKind, Event, JobError, Result

R = TypeVar("R", bound=Result)


async def last_event(events: AsyncGenerator[Event, None]) -> Done:
    """Waits for the job's end; every other event is dropped. Raises `JobError`."""
    async with aclosing(events):
        async for event in events:
            if isinstance(event, Done):
                return event
    raise _wrong_result()


def result_of(done: Done, kind: type[R]) -> R:
    """The result, which must be of the endpoint's kind. Raises `JobError`."""
    if not isinstance(done.result, kind):
        raise _wrong_result()
    return done.result


def timings(done: Done) -> dict[str, float]:
    """Milliseconds, as the runner measured them."""
    return {"queue_ms": round(done.queue_ms, 3), "total_ms": round(done.total_ms, 3)}


def timing_headers(done: Done) -> dict[str, str]:
    return {"X-Queue-Ms": f"{done.queue_ms:.3f}", "X-Total-Ms": f"{done.total_ms:.3f}"}


def _wrong_result() -> JobError:
    return JobError(ErrorKind.INTERNAL, "The runner gave no result of this kind.", code="wrong_result")
