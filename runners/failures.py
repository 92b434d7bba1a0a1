"""The ways a job ends without a result, and the fence around one row's own work."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TypeVar

from jobs import ErrorKind, Failed, JobError
from models.protocol import OutOfMemoryError

log = logging.getLogger("triptych.engine")
T = TypeVar("T")

INTERNAL = Failed(
    error=ErrorKind.INTERNAL, message="This request failed inside the model; others are not affected."
)
NO_MEMORY = Failed(
    error=ErrorKind.UNAVAILABLE,
    message="There is not enough memory for this request; ask for less or try again later.",
    code="out_of_memory",
    retry_after_s=5,
)
LATE = Failed(error=ErrorKind.TIMEOUT, message="The request was not done within its time limit.")
CANCELLED = Failed(error=ErrorKind.CANCELLED, message="The request was cancelled.")
CLOSING = Failed(error=ErrorKind.UNAVAILABLE, message="The runner is shutting down.", retry_after_s=5)

UNKNOWN_JOB = Failed(
    error=ErrorKind.UNAVAILABLE,  # while an update rolls on, another process of the runner may
    message="This runner does not understand the gateway's jobs: update both.",
    code="version_mismatch",
    retry_after_s=5,
)


def no_such_model(name: str | None, names: Sequence[str]) -> JobError:
    """For a job of a model that is not here; `names` are those that take such jobs."""
    there = f"There are: {', '.join(names)}." if names else "The profile has none for this."
    asked = f" '{name}'" if name else ""
    return JobError(
        ErrorKind.NOT_FOUND, f"There is no model{asked} here. {there}", param="model", code="model_not_found"
    )


def isolated(work: Callable[[], T]) -> T | Failed:
    """Runs one row's own work; whatever it raises becomes that row's failure and no other's."""
    try:
        return work()
    except JobError as error:
        return Failed.of(error)
    except OutOfMemoryError:
        return NO_MEMORY
    except Exception:
        log.exception("A row failed beside the steps")
        return INTERNAL
