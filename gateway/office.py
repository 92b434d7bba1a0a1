"""What the gateway keeps about its callers: made with the service, one a process, and closed with it."""

from __future__ import annotations

import asyncio
from pathlib import Path

from gateway.auth import Guard
from gateway.books import Books
from gateway.errands import Errands
from gateway.errors import log_bug
from gateway.kept import Kept
from gateway.keys import server_secret
from gateway.ledger import Ledger
from gateway.options import JOB_KINDS, GatewayOptions
from gateway.store import Store


class Office:
    """Closed, with nothing in it, until the service is made."""

    store: Store
    guard: Guard
    books: Books
    ledger: Ledger
    kept: Kept
    errands: Errands

    def open(self, options: GatewayOptions) -> None:
        self._options = options
        self._going_on: set[asyncio.Task[None]] = set()
        self.store = Store(options.store_url)
        self.guard = Guard(self.store, self.secret)
        self.books = Books(self.store, {kind: options.default_model(kind) for kind in JOB_KINDS})
        self.ledger = Ledger(self.store)
        self.kept = Kept(self.store, options.max_kept_bytes, options.max_kept_age_s)
        self.errands = Errands(self.kept, self.guard, self.ledger, options)

    def secret(self) -> bytes:
        """What keys are hashed with. Raises `StoreError`."""
        return server_secret(self._options.secret, Path(self._options.state_dir, "secret"))

    def later(self, task: asyncio.Task[None]) -> None:
        """Takes over the work of a caller who has gone, until it ends."""
        self._going_on.add(task)
        task.add_done_callback(self._forget)

    def _forget(self, task: asyncio.Task[None]) -> None:
        self._going_on.discard(task)
        if not task.cancelled() and isinstance(error := task.exception(), Exception):
            log_bug(error)

    async def begin(self) -> None:
        """On the event loop, before the first request."""
        if self.store.is_own:
            await self.kept.lose()

    async def close(self) -> None:
        await self.errands.close()
        for task in self._going_on:
            task.cancel()
        await asyncio.gather(*self._going_on, return_exceptions=True)
        await self.books.close()
        await self.ledger.close()
        self.store.close()
