"""In-flight batching: admit, step, retire, cancel. Knows no model and imports no torch.

One thread owns every row and runs the steps. Other threads speak to it through an inbox: callers of
`submit` and `cancel`, the pools in which models prepare and finish rows beside the steps, and the second
thread of `runners.steps`.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from bisect import insort
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from jobs import Done, Event, Failed, Job, Queued
from models.protocol import Model
from runners.failures import CANCELLED, CLOSING, LATE, isolated, no_such_model
from runners.metrics import EngineMetrics
from runners.register import Register
from runners.residency import Residency
from runners.spans import end_job, step_span
from runners.steps import Stepped, Steps
from runners.stream import Stream
from runners.ticket import Outcome, Pace, Ticket

log = logging.getLogger("triptych.engine")


class Engine:
    """Serves jobs on the given models, many at a time; a job that names no model goes to the first.

    `names` are those of the models that it may serve, all of them when left out.
    `queue_size` bounds the jobs that wait for admission; `buffer_size` the unread events of one job.
    `on_crash` is called, on the engine's thread, if the engine itself fails.
    """

    def __init__(
        self,
        models: Mapping[str, Model[Any, Any]] | Residency,
        metrics: EngineMetrics,
        *,
        names: Sequence[str] | None = None,
        queue_size: int = 64,
        buffer_size: int = 64,
        finish_threads: int = 2,
        on_crash: Callable[[], None] | None = None,
    ) -> None:
        self._models = models if isinstance(models, Residency) else Residency.of(models)
        self._names = self._models.names if names is None else list(names)
        self._metrics = metrics
        self._buffer_size = buffer_size
        self._on_crash = on_crash
        self._pace = Pace()
        self._register = Register(queue_size, metrics, self._pace)
        self._inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._closed = False
        self._waiting: list[Ticket] = []
        self._steps = Steps(back=lambda steps: self._inbox.put(lambda: self._back(steps)))
        # Preparing may wait for a load, so every waiting job may have a thread; finishing burns a core.
        self._prepare_pool = ThreadPoolExecutor(queue_size, "prepare")
        self._finish_pool = ThreadPoolExecutor(finish_threads, "finish")
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        self._thread.start()

    # --- callers, on any thread -----------------------------------------------------------------------------

    def submit(self, job: Job) -> Stream:
        """Queues a job and gives its events; call it on the event loop that will read them.

        Raises `JobError` at once: NOT_FOUND for a model not here, OVERLOADED when the queue is full,
        UNAVAILABLE while draining, INVALID for an id in use.
        """
        ticket = Ticket(job, self._model_of(job), Stream(self._buffer_size, self._wake))
        before = self._register.enter(ticket)
        if not self._models.present(ticket.model_name):
            ticket.stream.put(self._queued(before))
        self._prepare_pool.submit(self._prepare, ticket)
        self._wake()  # its deadline may be the next one
        return ticket.stream

    def cancel(self, job_id: str) -> bool:
        """Ends a job between two steps; False when none of that id is at work."""
        ticket = self._register.find(job_id)
        if ticket is None:
            return False
        self._inbox.put(lambda: self._end(ticket, CANCELLED, Outcome.CANCELLED))
        return True

    def drain(self, timeout_s: float) -> bool:
        """Refuses new jobs and waits for those at work; False when some are left at the timeout."""
        self._register.close()
        return self._register.wait_empty(timeout_s)

    def close(self) -> None:
        """Ends what is left with UNAVAILABLE, releases every row and stops the threads."""
        self._register.close()
        self._inbox.put(self._close)
        self._thread.join()
        for each in (self._prepare_pool, self._finish_pool, self._steps):
            each.shutdown()

    def resident(self) -> list[dict[str, Any]]:
        """The models in memory."""
        return self._models.resident()

    def _model_of(self, job: Job) -> str:
        if not self._names or job.model not in (None, *self._names):
            raise no_such_model(job.model, self._names)
        return job.model or self._names[0]

    def _wake(self) -> None:
        self._inbox.put(lambda: None)

    # --- beside the steps, in the pools ---------------------------------------------------------------------

    def _prepare(self, ticket: Ticket) -> None:
        outcome = isolated(lambda: self._row(ticket))
        self._inbox.put(lambda: self._prepared(ticket, outcome))

    def _row(self, ticket: Ticket) -> Any:
        """May wait for the model to be loaded, and for others to leave it room."""
        ticket.model = self._models.borrow(ticket.model_name, lambda: not ticket.ended)
        try:
            return ticket.model.prepare(ticket.job)
        except BaseException:
            self._give_back(ticket)
            raise

    def _give_back(self, ticket: Ticket) -> None:
        ticket.model = None
        self._models.give_back(ticket.model_name, ticket.job.keep_alive_s)

    def _finish(self, ticket: Ticket) -> None:
        outcome = isolated(lambda: ticket.model.finish(ticket.row))
        self._inbox.put(lambda: self._finished(ticket, outcome))

    # --- the engine's thread --------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            stepped = False
            while not (self._closed and self._register.empty):
                self._read_inbox(wait=not stepped)
                self._end_late()
                self._admit()
                self._steps.begin_beside()
                steps = self._steps.here()
                for each in steps:
                    self._stepped(each)
                self._steps.prune()
                stepped = bool(steps)
        except Exception:
            log.critical("The engine failed", exc_info=True)
            if self._on_crash is not None:
                self._on_crash()

    def _read_inbox(self, *, wait: bool) -> None:
        try:
            if wait:
                self._pace.pause()
                self._inbox.get(timeout=self._next_deadline_s())()
            while True:
                self._inbox.get_nowait()()
        except queue.Empty:
            return

    def _next_deadline_s(self) -> float | None:
        deadlines = [ticket.deadline for ticket in self._register.all() if not ticket.ended]
        return max(0.0, min(deadlines) - time.monotonic()) if deadlines else None

    def _end_late(self) -> None:
        now = time.monotonic()
        for ticket in self._register.all():
            if ticket.deadline <= now:
                self._end(ticket, LATE, Outcome.LATE)

    def _prepared(self, ticket: Ticket, outcome: Any) -> None:
        ticket.in_pool = False
        if isinstance(outcome, Failed):
            self._register.leave(ticket)
            self._end(ticket, outcome, Outcome.FAILED)
            return
        ticket.row = outcome
        if ticket.ended:
            self._release(ticket)
            return
        insort(self._waiting, ticket, key=lambda waiting: (waiting.turn, waiting.number))
        ticket.stream.put(self._queued(self._waiting.index(ticket)))

    def _admit(self) -> None:
        """Admits in turn (`runners.fair`); one that must wait for memory blocks none behind it."""
        before = len(self._waiting)
        for ticket in list(self._waiting):
            reserved = isolated(lambda ticket=ticket: ticket.model.reserve(ticket.row))
            if isinstance(reserved, Failed):
                self._end(ticket, reserved, Outcome.FAILED)
            elif reserved:
                self._waiting.remove(ticket)
                self._register.admitted(ticket, runs=True)
                self._go_on(ticket)
        if len(self._waiting) < before:
            for position, ticket in enumerate(self._waiting):
                ticket.stream.put(self._queued(position))

    def _queued(self, position: int) -> Queued:
        return Queued(position=position, wait_s=round(self._pace.predict_s(position), 1))

    def _back(self, steps: list[Stepped]) -> None:
        """Rows are back from the second thread."""
        self._steps.is_back(steps)
        for stepped in steps:
            self._stepped(stepped)
        self._steps.prune()

    def _stepped(self, stepped: Stepped) -> None:
        lane, tickets = stepped.lane, stepped.tickets
        for ticket in tickets:
            if ticket.ended:  # it was with the second thread then
                self._release(ticket)
        if isinstance(stepped.outcome, Failed):
            self._end(tickets[0], stepped.outcome, Outcome.FAILED)
            return
        self._metrics.stepped(lane.stage, stepped.elapsed_s, len(tickets))
        for ticket, events in zip(tickets, stepped.outcome, strict=True):
            step_span(ticket.span, lane.stage, len(tickets), stepped.elapsed_s)
            if not ticket.ended:
                self._advance(ticket, stepped.started, events)

    def _advance(self, ticket: Ticket, started: float, events: Sequence[Event]) -> None:
        if ticket.first_step is None:
            ticket.first_step = started
            self._metrics.started(started - ticket.arrived)
        for event in events:
            ticket.stream.put(event)
        self._go_on(ticket)

    def _go_on(self, ticket: Ticket) -> None:
        lane = ticket.model.lane(ticket.row)
        if lane is not None:
            self._steps.add(lane, ticket)
        else:
            ticket.in_pool = True
            self._finish_pool.submit(self._finish, ticket)

    def _finished(self, ticket: Ticket, outcome: Any) -> None:
        ticket.in_pool = False
        if ticket.ended:
            self._release(ticket)
        elif isinstance(outcome, Failed):
            self._end(ticket, outcome, Outcome.FAILED)
        else:
            self._pace.done()
            done = ticket.done(outcome)
            self._metrics.worked((done.total_ms - done.queue_ms) / 1000)
            self._end(ticket, done, Outcome.DONE)

    def _end(self, ticket: Ticket, last: Done | Failed, outcome: Outcome) -> None:
        """Says the last word and lets the row go, at once or when the pool that holds it gives it back."""
        if ticket.ended:
            return
        ticket.ended = True
        self._register.admitted(ticket, runs=False)
        self._metrics.ended(outcome)
        end_job(ticket.span, outcome)
        if ticket in self._waiting:
            self._waiting.remove(ticket)
        self._steps.remove(ticket)
        if not ticket.in_pool and ticket.row is not None:
            self._release(ticket)
        ticket.stream.put(last)

    def _release(self, ticket: Ticket) -> None:
        ticket.model.release(ticket.row)
        self._give_back(ticket)
        self._register.leave(ticket)

    def _close(self) -> None:
        for ticket in self._register.all():
            self._end(ticket, CLOSING, Outcome.CANCELLED)
        self._closed = True
