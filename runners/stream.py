"""One job's events on their way from the engine's thread to the one who reads them."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable

from jobs import Done, Event, Failed, Progress, Queued


class Stream:
    """A small buffer with one reader on an event loop; made on that loop, filled from any thread.

    Of events that only tell where the job stands (`Queued`, `Progress`) the newest replaces the one before
    it. Nothing else is dropped: a buffer that is `full` tells the engine to let the row wait for its reader.
    """

    def __init__(self, capacity: int, on_drained: Callable[[], None]) -> None:
        self._capacity = capacity
        self._on_drained = on_drained
        self._events: deque[Event] = deque()
        self._lock = threading.Lock()
        self._loop = asyncio.get_running_loop()
        self._arrived = asyncio.Event()

    @property
    def full(self) -> bool:
        return len(self._events) >= self._capacity

    def put(self, event: Event) -> None:
        with self._lock:
            reader_knows = bool(self._events)
            if (
                reader_knows
                and isinstance(event, Queued | Progress)
                and type(event) is type(self._events[-1])
            ):
                self._events.pop()
            self._events.append(event)
        if not reader_knows:
            self._loop.call_soon_threadsafe(self._arrived.set)

    async def __aiter__(self) -> AsyncIterator[Event]:
        """Every event in order; ends after the one `Done` or `Failed`."""
        while True:
            await self._arrived.wait()
            with self._lock:
                events, self._events = self._events, deque()
                self._arrived.clear()
            if len(events) >= self._capacity:
                self._on_drained()
            for event in events:
                yield event
                if isinstance(event, Done | Failed):
                    return
