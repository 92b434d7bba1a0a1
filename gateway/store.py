"""The one database: keys, what they have spent, usage, and kept answers. SQLite, or PostgreSQL by URL.

Every call is short and runs on a thread of its own, beside the event loop. Amounts are changed by one
statement each, so that several gateways may share a PostgreSQL.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sql
from sqlalchemy import event
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import SQLAlchemyError

T = TypeVar("T")

METADATA = sql.MetaData()

KEYS = sql.Table(
    "keys",
    METADATA,
    sql.Column("id", sql.String(16), primary_key=True),
    sql.Column("name", sql.String(128), nullable=False),
    sql.Column("hash", sql.String(64), nullable=False),
    sql.Column("created_at", sql.Float, nullable=False),
    sql.Column("revoked_at", sql.Float),
    sql.Column("terms", sql.JSON, nullable=False),
)
SPENT = sql.Table(
    "spent",
    METADATA,
    sql.Column("key_id", sql.String(16), primary_key=True),
    sql.Column("unit", sql.String(16), primary_key=True),
    sql.Column("period", sql.String(10), primary_key=True),
    sql.Column("amount", sql.Float, nullable=False),
)
USAGE = sql.Table(
    "usage",
    METADATA,
    sql.Column("number", sql.Integer, primary_key=True, autoincrement=True),
    sql.Column("at", sql.Float, nullable=False, index=True),
    sql.Column("request_id", sql.String(128), nullable=False),
    sql.Column("key_id", sql.String(16), nullable=False, index=True),
    sql.Column("route", sql.String(128), nullable=False),
    sql.Column("model", sql.String(128), nullable=False),
    sql.Column("status", sql.Integer, nullable=False),
    sql.Column("outcome", sql.String(16), nullable=False),
    sql.Column("prompt_tokens", sql.Float, nullable=False),
    sql.Column("completion_tokens", sql.Float, nullable=False),
    sql.Column("pixel_steps", sql.Float, nullable=False),
    sql.Column("audio_s", sql.Float, nullable=False),
    sql.Column("queue_ms", sql.Float, nullable=False),
    sql.Column("work_ms", sql.Float, nullable=False),
)
ANSWERS = sql.Table(
    "answers",
    METADATA,
    # Of a job: "job <id>"; of an Idempotency-Key: "once <key>". Both are the owner's own.
    sql.Column("key_id", sql.String(16), primary_key=True),
    sql.Column("name", sql.String(300), primary_key=True),
    sql.Column("created_at", sql.Float, nullable=False, index=True),
    sql.Column("state", sql.String(16), nullable=False),
    sql.Column("request_hash", sql.String(64), nullable=False),
    sql.Column("route", sql.String(128), nullable=False),
    sql.Column("status", sql.Integer),
    sql.Column("headers", sql.JSON),
    sql.Column("body", sql.LargeBinary),
    sql.Column("size", sql.Integer, nullable=False, default=0),
)


class StoreError(Exception):
    """The database cannot be used; the message says which and why."""


class Store:
    """Made once a process. `url` as SQLAlchemy has it; a SQLite file's folder is made when it is needed."""

    def __init__(self, url: str) -> None:
        self._url = sql.make_url(url)
        self._engine: sql.Engine | None = None
        self._lock = threading.Lock()
        # SQLite has one writer anyway, and one thread keeps its statements in order.
        threads = 1 if self._url.get_backend_name() == "sqlite" else 8
        self._pool = ThreadPoolExecutor(threads, "store")

    @property
    def is_own(self) -> bool:
        """Whether no other gateway shares it."""
        return self._url.get_backend_name() == "sqlite"

    def begin(self) -> Any:
        """A transaction, on the calling thread: `with store.begin() as connection`. Raises `StoreError`."""
        return self._open().begin()

    async def run(self, work: Callable[[sql.Connection], T]) -> T:
        """Runs one transaction beside the event loop. Raises `StoreError`."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, self._transact, work)

    def close(self) -> None:
        self._pool.shutdown()
        if self._engine is not None:
            self._engine.dispose()

    def _transact(self, work: Callable[[sql.Connection], T]) -> T:
        try:
            with self.begin() as connection:
                return work(connection)
        except SQLAlchemyError as error:
            raise StoreError(f"The store failed with {type(error).__name__}.") from None

    def _open(self) -> sql.Engine:
        with self._lock:
            if self._engine is None:
                self._engine = self._connect()
            return self._engine

    def _connect(self) -> sql.Engine:
        name = self._url.render_as_string(hide_password=True)
        try:
            if self._url.get_backend_name() == "sqlite" and self._url.database:
                Path(self._url.database).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            engine = sql.create_engine(self._url, **_IN_MEMORY if _in_memory(self._url) else {})
            if engine.dialect.name == "sqlite":
                event.listen(engine, "connect", _tune)
            METADATA.create_all(engine)
        except (SQLAlchemyError, OSError) as error:
            raise StoreError(f"The store {name} cannot be opened: {type(error).__name__}.") from None
        return engine


def insert_new(connection: sql.Connection, table: sql.Table, values: dict[str, Any]) -> bool:
    """Inserts a row unless its primary key is there; tells whether it was new."""
    dialect: Any = sqlite if connection.dialect.name == "sqlite" else postgresql
    statement = dialect.insert(table).values(values).on_conflict_do_nothing()
    # Not by the count of rows, which drivers do not tell of such a statement.
    return connection.execute(statement.returning(*table.primary_key)).first() is not None


_IN_MEMORY: dict[str, Any] = {"poolclass": sql.StaticPool, "connect_args": {"check_same_thread": False}}


def _in_memory(url: sql.URL) -> bool:
    return url.get_backend_name() == "sqlite" and not url.database


def _tune(connection: Any, _: Any) -> None:
    """Readers beside the writer, waits for other processes, and no wait for the disk at each record."""
    for pragma in ("journal_mode = WAL", "synchronous = NORMAL", "busy_timeout = 5000"):
        connection.execute(f"PRAGMA {pragma}")
