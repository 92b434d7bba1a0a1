"""Steps: whose turn it is, on which of two threads, and what became of each row."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from jobs import Event, Failed, JobError
from models.protocol import Lane, OutOfMemoryError
from runners.failures import INTERNAL, NO_MEMORY
from runners.lanes import Lanes
from runners.ticket import Ticket

log = logging.getLogger("triptych.engine")


@dataclass(frozen=True, slots=True)
class Stepped:
    """Rows that were in one forward, and what came of it."""

    lane: Lane
    tickets: list[Ticket]
    started: float
    """In `time.monotonic()` seconds."""
    elapsed_s: float
    outcome: Sequence[Sequence[Event]] | Failed
    """The events of each row; a failure is of the only row."""
    fitting: int | None = None
    """How many rows fit into the memory of the lane's steps, where more did not."""


def step(lane: Lane, tickets: list[Ticket], fitting: int | None = None) -> list[Stepped]:
    """Advances rows of one model.

    A failed step changed nothing: its halves run again, until the guilty row is alone.
    """
    started = time.monotonic()
    outcome: Sequence[Sequence[Event]] | Failed
    half = len(tickets) // 2
    try:
        outcome = tickets[0].model.step(lane, [ticket.row for ticket in tickets])
    except OutOfMemoryError:
        outcome, fitting = NO_MEMORY, half or fitting
    except JobError as error:  # one of the rows cannot go on, and its model says why
        outcome = Failed.of(error)
    except Exception:
        log.exception("A step of lane %s with %d rows failed", lane, len(tickets))
        outcome = INTERNAL
    if isinstance(outcome, Failed) and half:
        return [*step(lane, tickets[:half], fitting), *step(lane, tickets[half:], fitting)]
    return [Stepped(lane, tickets, started, time.monotonic() - started, outcome, fitting)]


class Steps:
    """The rows in flight, each in the lane of its next step. The engine's thread owns it.

    A second thread takes the steps of lanes that are `beside`; a row is with it for no longer than a step.
    """

    def __init__(self, back: Callable[[list[Stepped]], None]) -> None:
        """`back` is called on the second thread with what came of its step; the engine then calls
        `is_back`."""
        self._back = back
        self._lanes, self._lanes_beside = _lanes(), _lanes()
        self._busy_beside = False
        self._pool = ThreadPoolExecutor(1, "beside")

    def add(self, lane: Lane, ticket: Ticket) -> None:
        ticket.lane = lane
        self._of(lane).add(lane, ticket)

    def remove(self, ticket: Ticket) -> None:
        """Takes it out of its lane, where it is in one."""
        if ticket.lane is not None:
            self._of(ticket.lane).remove(ticket.lane, ticket)
            ticket.lane = None

    def begin_beside(self) -> None:
        """Gives the second thread its next step, if it has none."""
        taken = None if self._busy_beside else self._take(self._lanes_beside)
        if taken is None:
            return
        self._busy_beside = True
        for ticket in taken[1]:
            ticket.in_pool = True
        self._pool.submit(lambda: self._back(step(*taken)))

    def is_back(self, steps: Sequence[Stepped]) -> None:
        """The rows of the second thread's step are the engine's again."""
        self._busy_beside = False
        for stepped in steps:
            for ticket in stepped.tickets:
                ticket.in_pool = False
        self._settle(self._lanes_beside, steps)

    def here(self) -> list[Stepped]:
        """Steps those whose turn it is, on this thread; none when nobody may.

        With nothing of its own to do it lends the second thread a hand.
        """
        for lanes in (self._lanes, self._lanes_beside):
            if (taken := self._take(lanes)) is not None:
                steps = step(*taken)
                self._settle(lanes, steps)
                return steps
        return []

    def prune(self) -> None:
        """Forgets lanes that nobody has gone on in."""
        self._lanes.prune()
        self._lanes_beside.prune()

    def shutdown(self) -> None:
        self._pool.shutdown()

    def _of(self, lane: Lane) -> Lanes[Ticket]:
        return self._lanes_beside if lane.beside else self._lanes

    @staticmethod
    def _take(lanes: Lanes[Ticket]) -> tuple[Lane, list[Ticket]] | None:
        taken = lanes.take()
        if taken is not None:
            lanes.leave(*taken)
            for ticket in taken[1]:
                ticket.lane = None
        return taken

    @staticmethod
    def _settle(lanes: Lanes[Ticket], steps: Sequence[Stepped]) -> None:
        for stepped in steps:
            lanes.pay(stepped.lane, stepped.elapsed_s)
            if stepped.fitting is not None:
                lanes.limit(stepped.lane, stepped.fitting)


def _lanes() -> Lanes[Ticket]:
    return Lanes(
        cost=lambda ticket: ticket.model.cost(ticket.row),
        budget=lambda ticket, lane: ticket.model.budget(lane),
        runnable=lambda ticket: not ticket.stream.full,
    )
