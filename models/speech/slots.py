"""Which slots of which bank are free."""

from __future__ import annotations

import heapq
import threading

CPU_ROWS = 8
"""Slots of one forward on a CPU: a row alone pays for all of them, and more than these gain little."""


class SlotPool:
    """The slots of all banks; the lowest come first, for attention reads only up to the last one in use.

    Steps of two lanes may take and give back at once.
    """

    def __init__(self, slots: int, per_bank: int) -> None:
        """`slots` in all; the last bank may have fewer of them than the others."""
        self._lock = threading.Lock()
        self._free = [list(range(min(per_bank, slots - first))) for first in range(0, slots, per_bank)]

    def take(self, bank: int | None = None) -> tuple[int, int] | None:
        """A free (bank, slot), of the given bank or of the first that has one; None when there is none."""
        with self._lock:
            for number, free in enumerate(self._free):
                if free and bank in (None, number):
                    return number, heapq.heappop(free)
        return None

    def free_in(self, bank: int) -> int:
        return len(self._free[bank])

    def give_back(self, bank: int, slot: int) -> None:
        with self._lock:
            heapq.heappush(self._free[bank], slot)
