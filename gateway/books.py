"""What each key spends: charged on the estimate before a job starts, settled on the fact when it ends."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Coroutine
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import sqlalchemy as sql

from gateway.errors import HttpError
from gateway.keys import Key, Terms
from gateway.store import SPENT, Store, StoreError, insert_new
from gateway.tickets import Ticket, current_ticket
from gateway.units import Units, counted, estimate, so_far
from jobs import Done, ErrorKind, Event, Job, JobError

logger = logging.getLogger("triptych.gateway")


class Bill:
    """One job's, while it runs; `saw` is told each of its events."""

    def __init__(self, job: Job, ticket: Ticket) -> None:
        self._job = job
        self._ticket = ticket
        self.units = Units()

    def saw(self, event: Event) -> None:
        if isinstance(event, Done):
            self.units = counted(self._job, event.result)
            taken = self._ticket.taken
            taken.model = event.result.model
            taken.queue_ms = max(taken.queue_ms, event.queue_ms)
            taken.work_ms = max(taken.work_ms, event.total_ms - event.queue_ms)
        else:
            self.units = so_far(self._job, event, self.units)
        if self._ticket.watch is not None:
            self._ticket.watch(event)


class Books:
    """`models` has the default model's name of each kind of job, for keys that may not ask for it."""

    def __init__(self, store: Store, default_models: dict[str, str]) -> None:
        self._store = store
        self._defaults = default_models
        self._background: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def open(self, job: Job) -> AsyncGenerator[Bill, None]:
        """Raises `JobError` before any work: 403 for a model not the key's, 429 for a quota that is spent."""
        ticket = current_ticket()
        key, expected = ticket.key, estimate(job)
        model = job.model or self._defaults.get(job.kind, "")
        ticket.taken.model = ticket.taken.model or model
        if key is not None:
            if not key.terms.allows_model(model):
                raise HttpError(403, f"This key is not for the model {model}.", "model_not_allowed")
            await self._charge(key, expected)
        ticket.taken.jobs += 1
        bill = Bill(job, ticket)
        try:
            yield bill
        finally:
            ticket.taken.units += bill.units
            if key is not None and key.terms.quotas():
                self._later(self._settle(key, expected, bill.units))

    async def close(self) -> None:
        """Waits for what is still being settled."""
        await asyncio.gather(*self._background, return_exceptions=True)

    async def _charge(self, key: Key, expected: Units) -> None:
        quotas = key.terms.quotas()
        wanted = {unit: getattr(expected, unit) for unit in quotas if getattr(expected, unit) > 0}
        if not wanted:
            return

        def charge(connection: sql.Connection) -> str | None:
            """The unit that does not suffice; nothing is charged then."""
            for unit, amount in wanted.items():
                if not _add(connection, key, unit, amount, at_most=quotas[unit]):
                    connection.rollback()
                    return unit
            return None

        try:
            short = await self._store.run(charge)
        except StoreError as error:
            logger.error("%s", error)
            message = "Quotas cannot be checked now; try again later."
            raise JobError(ErrorKind.UNAVAILABLE, message, code="no_store") from None
        if short is not None:
            raise _spent(key.terms, short)

    async def _settle(self, key: Key, expected: Units, units: Units) -> None:
        def settle(connection: sql.Connection) -> None:
            for unit in key.terms.quotas():
                if getattr(expected, unit) > 0:
                    _add(connection, key, unit, getattr(units, unit) - getattr(expected, unit))

        try:
            await self._store.run(settle)
        except StoreError as error:
            logger.error("a key stays charged on an estimate: %s", error)

    def _later(self, work: Coroutine[Any, Any, None]) -> None:
        """Settled on whatever happens to the caller."""
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)


def _add(
    connection: sql.Connection, key: Key, unit: str, amount: float, at_most: float | None = None
) -> bool:
    """Adds to what the key has spent, unless that would be above `at_most`: in one statement."""
    row = {"key_id": key.id, "unit": unit, "period": _period(key.terms)}
    insert_new(connection, SPENT, {**row, "amount": 0.0})
    change = sql.update(SPENT).where(*(SPENT.c[name] == value for name, value in row.items()))
    if at_most is not None:
        change = change.where(SPENT.c.amount + amount <= at_most)
    return bool(connection.execute(change.values(amount=SPENT.c.amount + amount)).rowcount)


def _period(terms: Terms) -> str:
    today = datetime.now(UTC).date().isoformat()
    return {"day": today, "month": today[:7], "ever": "ever"}[terms.period]


def _spent(terms: Terms, unit: str) -> JobError:
    now = datetime.now(UTC)
    midnight = now.replace(hour=0, minute=0, second=0, microsecond=0)
    next_month = (midnight.replace(day=1) + timedelta(days=32)).replace(day=1)
    ends = {"day": midnight + timedelta(days=1), "month": next_month}.get(terms.period)
    amount = terms.quotas()[unit]
    what = {"tokens": "tokens", "pixel_steps": "pixel-steps", "audio_s": "seconds of sound"}[unit]
    per = "" if ends is None else f" a {terms.period}"
    message = f"The rest of this key's {amount:g} {what}{per} is less than this request may take."
    wait_s = 86_400.0 if ends is None else (ends - now).total_seconds()
    return JobError(ErrorKind.OVERLOADED, message, code="insufficient_quota", retry_after_s=wait_s)


def spent_by(connection: sql.Connection, key: Key) -> dict[str, float]:
    """What the key has spent of each limited unit in the current period."""
    mine = sql.select(SPENT.c.unit, SPENT.c.amount).where(
        SPENT.c.key_id == key.id, SPENT.c.period == _period(key.terms)
    )
    return {str(unit): float(amount) for unit, amount in connection.execute(mine)}
