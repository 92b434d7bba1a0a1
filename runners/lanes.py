"""Which lane steps next, and with which rows: deficit round robin over measured time.

Shreedhar and Varghese, "Efficient fair queuing using deficit round robin", 1996, with seconds in place of
bytes: a step's length is known only afterwards, so a lane may run into debt and sits out until it is paid.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from models.protocol import Lane

T = TypeVar("T")

QUANTUM_S = 0.02
"""What an average lane is granted a round: about one step, so that lanes take turns step by step."""
MIN_SHARE = 0.25
"""The least part of an average lane's quantum that a lane with little waiting gets."""


@dataclass(eq=False, slots=True)
class _Queue(Generic[T]):
    lane: Lane
    rows: deque[T] = field(default_factory=deque)
    deficit_s: float = 0.0
    max_rows: int | None = None


class Lanes(Generic[T]):
    """The rows in flight, each in the lane of its next step. Not thread-safe: the engine's thread owns it."""

    def __init__(
        self,
        cost: Callable[[T], float],
        budget: Callable[[T, Lane], float],
        runnable: Callable[[T], bool],
    ) -> None:
        """`runnable` says whether a row may step now: one that waits for its reader keeps its place."""
        self._cost = cost
        self._budget = budget
        self._runnable = runnable
        self._queues: dict[Lane, _Queue[T]] = {}
        self._ring: deque[_Queue[T]] = deque()

    def add(self, lane: Lane, row: T) -> None:
        queue = self._queues.get(lane)
        if queue is None:
            queue = self._queues[lane] = _Queue(lane)
            self._ring.append(queue)
        queue.rows.append(row)

    def remove(self, lane: Lane, row: T) -> None:
        queue = self._queues[lane]
        queue.rows.remove(row)
        if not queue.rows:
            self._drop(queue)

    def take(self) -> tuple[Lane, list[T]] | None:
        """The next lane and the rows of its next step, longest unstepped first; None when none may step.

        The rows stay in the lane until they `leave` it.
        """
        waiting = {queue.lane: self._waiting(queue) for queue in self._ring}
        ready = sum(1 for cost in waiting.values() if cost > 0)
        if ready == 0:
            return None
        average = sum(waiting.values()) / ready
        while True:
            queue = self._ring[0]
            cost = waiting[queue.lane]
            if cost > 0:
                if ready == 1:
                    queue.deficit_s = 0.0  # nobody else waited, so nothing is owed
                    return queue.lane, self._choose(queue)
                if queue.deficit_s > 0:
                    return queue.lane, self._choose(queue)
                queue.deficit_s += QUANTUM_S * max(MIN_SHARE, cost / average)
            self._ring.rotate(-1)

    def leave(self, lane: Lane, rows: list[T]) -> None:
        """Takes rows that step, or have stepped, out of their lane; `add` puts them back."""
        queue = self._queues[lane]
        chosen = set(map(id, rows))
        queue.rows = deque(row for row in queue.rows if id(row) not in chosen)

    def pay(self, lane: Lane, elapsed_s: float) -> None:
        """Takes the time of a step from what its lane has been granted."""
        queue = self._queues.get(lane)
        if queue is None:  # it has been empty since, and owes nothing
            return
        queue.deficit_s -= elapsed_s
        if queue.deficit_s <= 0:
            self._ring.remove(queue)
            self._ring.append(queue)

    def limit(self, lane: Lane, max_rows: int) -> None:
        """Remembers that a step of more rows ran out of memory, for as long as the lane lives."""
        if lane in self._queues:
            self._queues[lane].max_rows = max(1, max_rows)

    def prune(self) -> None:
        """Forgets empty lanes, their debts too."""
        for queue in [queue for queue in self._ring if not queue.rows]:
            self._drop(queue)

    def _drop(self, queue: _Queue[T]) -> None:
        del self._queues[queue.lane]
        self._ring.remove(queue)

    def _waiting(self, queue: _Queue[T]) -> float:
        return sum(self._cost(row) for row in queue.rows if self._runnable(row))

    def _choose(self, queue: _Queue[T]) -> list[T]:
        chosen: list[T] = []
        spent = 0.0
        for row in queue.rows:
            if not self._runnable(row):
                continue
            cost = self._cost(row)
            over_budget = chosen and spent + cost > self._budget(row, queue.lane)
            if over_budget or (queue.max_rows is not None and len(chosen) >= queue.max_rows):
                break
            chosen.append(row)
            spent += cost
        return chosen
