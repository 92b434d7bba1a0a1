"""One record a request that made jobs: who, what, how much, how it ended; never what was said."""

from __future__ import annotations

import asyncio
import csv
import io
import json
import logging
import time
from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any

import sqlalchemy as sql
from prometheus_client import Counter

from gateway.store import USAGE, Store, StoreError
from gateway.tickets import Ticket

logger = logging.getLogger("triptych.gateway")

FIELDS = tuple(column.name for column in USAGE.columns if column.name != "number")
WRITE_EVERY_S = 0.2
MOST_UNWRITTEN = 10_000
"""Records that wait for a store that fails; more are dropped, and the log says so."""
_COUNTED = ("prompt_tokens", "completion_tokens", "pixel_steps", "audio_s")


class Ledger:
    """Writes records a few at a time, beside the requests; no request waits for the store."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._unwritten: list[dict[str, Any]] = []
        self._writing: asyncio.Task[None] | None = None
        self._requests, self._used = _counters()

    def record(self, ticket: Ticket, route: str, status: int, outcome: str) -> None:
        taken = ticket.taken
        if not taken.jobs:
            return
        self._requests.labels(route, outcome).inc()
        units = {unit: float(getattr(taken.units, unit)) for unit in _COUNTED}
        for unit, amount in units.items():
            if amount:
                self._used.labels(ticket.key_id, unit).inc(amount)
        if len(self._unwritten) >= MOST_UNWRITTEN:
            logger.error("a usage record is dropped: the store does not take them")
            return
        self._unwritten.append(
            {
                "at": time.time(),
                "request_id": ticket.request_id,
                "key_id": ticket.key_id,
                "route": route,
                "model": taken.model,
                "status": status,
                "outcome": outcome,
                "queue_ms": round(taken.queue_ms, 3),
                "work_ms": round(taken.work_ms, 3),
                **units,
            }
        )
        if self._writing is None or self._writing.done():
            self._writing = asyncio.create_task(self._write_soon())

    async def close(self) -> None:
        """Writes what is left."""
        if self._writing is not None:
            self._writing.cancel()
            await asyncio.gather(self._writing, return_exceptions=True)
        await self._write()

    async def _write_soon(self) -> None:
        while self._unwritten:
            await asyncio.sleep(WRITE_EVERY_S)
            await self._write()

    async def _write(self) -> None:
        records, self._unwritten = self._unwritten, []
        if not records:
            return
        try:
            await self._store.run(lambda connection: connection.execute(sql.insert(USAGE), records))
        except StoreError as error:
            logger.error("usage is not written yet: %s", error)
            self._unwritten = records + self._unwritten


@cache
def _counters() -> tuple[Counter, Counter]:
    """Once a process, which may make its gateway again; late, when it is known where metrics are gathered."""
    requests = Counter("triptych_requests", "Requests that made jobs.", ["route", "outcome"])
    used = Counter("triptych_usage", "What was used, by key and unit.", ["key", "unit"])
    return requests, used


def records(
    connection: sql.Connection, since: float, until: float, key_id: str | None
) -> Iterator[dict[str, Any]]:
    """Usage from `since` on and before `until` (seconds since 1970), oldest first."""
    asked = sql.select(USAGE).where(USAGE.c.at >= since, USAGE.c.at < until).order_by(USAGE.c.number)
    if key_id is not None:
        asked = asked.where(USAGE.c.key_id == key_id)
    for row in connection.execute(asked).mappings():
        yield {name: row[name] for name in FIELDS}


def as_csv(rows: Iterable[dict[str, Any]]) -> Iterator[str]:
    """Lines, the heading first."""
    line = io.StringIO()
    writer = csv.DictWriter(line, FIELDS)
    writer.writeheader()
    for row in rows:
        yield line.getvalue()
        line.seek(0)
        line.truncate()
        writer.writerow(row)
    yield line.getvalue()


def as_json_lines(rows: Iterable[dict[str, Any]]) -> Iterator[str]:
    for row in rows:
        yield json.dumps(row) + "\n"
