"""The jobs at work, bounded, and whether new ones are taken: what `submit` must know at once."""

from __future__ import annotations

import threading

from jobs import ErrorKind, JobError
from runners.failures import CLOSING
from runners.fair import Turns
from runners.metrics import EngineMetrics
from runners.ticket import Outcome, Pace, Ticket


class Register:
    """Thread-safe. A ticket is in it until its row is released; it counts as queued until it is admitted."""

    def __init__(self, queue_size: int, metrics: EngineMetrics, pace: Pace) -> None:
        self._queue_size = queue_size
        self._metrics = metrics
        self._pace = pace
        self._lock = threading.Lock()
        self._tickets: dict[str, Ticket] = {}
        self._queued = 0
        self._turns = Turns()
        self._closing = False
        self._empty = threading.Event()
        self._empty.set()

    def enter(self, ticket: Ticket) -> int:
        """How many wait before it.

        Raises `JobError` when it cannot be taken: OVERLOADED, UNAVAILABLE, INVALID for an id in use.
        """
        with self._lock:
            before = self._queued
            error = self._refusal(ticket)
            if error is None:
                self._tickets[ticket.job.id] = ticket
                ticket.turn = self._turns.enter(ticket.job)
                self._queued += 1
                self._empty.clear()
        if error is not None:
            self._metrics.ended(Outcome.REFUSED)
            raise error
        self._metrics.queue_depth(self._queued)
        self._metrics.at_work(len(self._tickets))
        return before

    def _refusal(self, ticket: Ticket) -> JobError | None:
        if self._closing:
            return CLOSING.as_error()
        if ticket.job.id in self._tickets:
            return JobError(ErrorKind.INVALID, "A job of this id is at work already.", param="id")
        if self._queued >= self._queue_size:
            return JobError(
                ErrorKind.OVERLOADED,
                f"{self._queued} jobs are waiting already; try again later.",
                code="queue_full",
                retry_after_s=self._pace.wait_s(self._queued),
            )
        if not self._turns.may_queue(ticket.job.account, self._queue_size):
            return JobError(
                ErrorKind.OVERLOADED,
                "This key's jobs fill its part of the queue already; try again later.",
                code="queue_full",
                retry_after_s=self._pace.wait_s(self._queued),
            )
        return None

    def admitted(self, ticket: Ticket, *, runs: bool) -> None:
        """The ticket waits no longer, because it runs or because it has ended."""
        if ticket.queued:
            ticket.queued = False
            with self._lock:
                self._queued -= 1
                self._turns.leave(ticket.job, ticket.turn, admitted=runs)
            self._metrics.queue_depth(self._queued)

    def leave(self, ticket: Ticket) -> None:
        with self._lock:
            del self._tickets[ticket.job.id]
            if not self._tickets:
                self._empty.set()
        self._metrics.at_work(len(self._tickets))

    def find(self, job_id: str) -> Ticket | None:
        with self._lock:
            return self._tickets.get(job_id)

    def all(self) -> list[Ticket]:
        with self._lock:
            return list(self._tickets.values())

    def close(self) -> None:
        """From now on nothing enters."""
        with self._lock:
            self._closing = True

    @property
    def empty(self) -> bool:
        return self._empty.is_set()

    def wait_empty(self, timeout_s: float) -> bool:
        return self._empty.wait(timeout_s)
