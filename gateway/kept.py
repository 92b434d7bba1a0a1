"""Answers that are kept: of jobs, and of requests with an Idempotency-Key. Bounded in size and age."""

from __future__ import annotations

import json
import logging
import time
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import sqlalchemy as sql

from gateway.sending import Captured, Work
from gateway.store import ANSWERS, Store, StoreError, insert_new
from jobs import ErrorKind, JobError

logger = logging.getLogger("triptych.gateway")

RUNNING = "running"
LOST = "lost"


@dataclass(frozen=True, slots=True)
class Name:
    """Whose answer, and which: `kind` is `job` or `once`."""

    key_id: str
    kind: str
    id: str

    @property
    def row(self) -> dict[str, str]:
        return {"key_id": self.key_id, "name": f"{self.kind} {self.id}"}


@dataclass(frozen=True, slots=True)
class KeptAnswer:
    state: str
    """`running`, `done`, `failed`, `cancelled`, or `lost` by a restart."""
    request_hash: str
    route: str
    created_at: float
    answer: Captured | None


class Kept:
    """At most `max_bytes` of answers, none older than `max_age_s`: the oldest go first."""

    def __init__(self, store: Store, max_bytes: int, max_age_s: float) -> None:
        self._store = store
        self._max_bytes = max_bytes
        self._max_age_s = max_age_s

    async def reserve(self, name: Name, work: Work, request_hash: str) -> KeptAnswer | None:
        """Takes a name for work that begins now; gives what is kept under it if it is taken.

        Raises `JobError` (UNAVAILABLE) when the store fails.
        """
        fresh = {
            **name.row,
            "created_at": time.time(),
            "state": RUNNING,
            "request_hash": request_hash,
            "route": work.route,
            "size": len(work.body),
        }

        def reserve(connection: sql.Connection) -> KeptAnswer | None:
            self._sweep(connection)
            return None if insert_new(connection, ANSWERS, fresh) else _find(connection, name)

        try:
            return await self._store.run(reserve)
        except StoreError as error:
            logger.error("%s", error)
            message = "Answers cannot be kept now; try again later, or ask without it."
            raise JobError(ErrorKind.UNAVAILABLE, message, code="no_store") from None

    async def finish(self, name: Name, state: str, answer: Captured | None) -> None:
        """Keeps the end of what was reserved. A store that fails is only logged: the work is done."""
        values: dict[str, Any] = {"state": state}
        if answer is not None:
            size = len(answer.body)
            values |= {"status": answer.status, "headers": answer.headers, "body": answer.body, "size": size}

        def finish(connection: sql.Connection) -> None:
            connection.execute(sql.update(ANSWERS).where(*_is(name)).values(values))
            self._sweep(connection)

        try:
            await self._store.run(finish)
        except StoreError as error:
            logger.error("an answer is not kept: %s", error)

    async def find(self, name: Name) -> KeptAnswer | None:
        """Raises `StoreError`."""
        return await self._store.run(lambda connection: _find(connection, name))

    async def forget(self, name: Name) -> bool:
        """Raises `StoreError`."""
        gone = sql.delete(ANSWERS).where(*_is(name))
        return bool(await self._store.run(lambda connection: connection.execute(gone).rowcount))

    async def lose(self) -> None:
        """What was running when the process ended will not end any more. For a store of one gateway."""
        lost = sql.update(ANSWERS).where(ANSWERS.c.state == RUNNING).values(state=LOST)
        try:
            await self._store.run(lambda connection: connection.execute(lost))
        except StoreError as error:
            logger.error("%s", error)

    def _sweep(self, connection: sql.Connection) -> None:
        connection.execute(sql.delete(ANSWERS).where(ANSWERS.c.created_at < time.time() - self._max_age_s))
        total = connection.execute(sql.select(sql.func.sum(ANSWERS.c.size))).scalar() or 0
        if total <= self._max_bytes:
            return
        ended = sql.select(ANSWERS.c.key_id, ANSWERS.c.name, ANSWERS.c.size).where(ANSWERS.c.state != RUNNING)
        for row in connection.execute(ended.order_by(ANSWERS.c.created_at)):
            if total <= self._max_bytes:
                return
            this = (ANSWERS.c.key_id == row.key_id, ANSWERS.c.name == row.name)
            connection.execute(sql.delete(ANSWERS).where(*this))
            total -= row.size


def hash_of(work: Work) -> str:
    """What makes two requests the same: the route and what the body says, however it is spelt."""
    body = json.dumps(json.loads(work.body), sort_keys=True)
    return sha256(f"{work.route}\n{body}".encode()).hexdigest()


def _is(name: Name) -> tuple[Any, ...]:
    return tuple(ANSWERS.c[column] == value for column, value in name.row.items())


def _find(connection: sql.Connection, name: Name) -> KeptAnswer | None:
    row = connection.execute(sql.select(ANSWERS).where(*_is(name))).mappings().first()
    if row is None:
        return None
    answer = None
    if row["status"] is not None:
        headers = [(str(key), str(value)) for key, value in row["headers"]]
        answer = Captured(status=row["status"], headers=headers, body=row["body"])
    return KeptAnswer(row["state"], row["request_hash"], row["route"], row["created_at"], answer)
