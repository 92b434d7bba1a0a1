"""Who asks: the key of a request, checked against the store's, and whether it may come in now."""

from __future__ import annotations

import asyncio
import base64
import hmac
import logging
import time
from collections import deque
from collections.abc import Callable, Generator
from contextlib import contextmanager

from starlette.datastructures import Headers

from gateway.errors import HttpError
from gateway.keys import PREFIX, Key, all_keys, hashed
from gateway.store import Store, StoreError
from jobs import ErrorKind, JobError

logger = logging.getLogger("triptych.gateway")

FRESH_S = 1.0
"""How old what is known of the keys may be: a key that is made or revoked counts after this long."""
OPEN_ROUTES = frozenset({"/livez", "/readyz"})
DRAIN_ROUTE = "/drain"
MINUTE_S = 60.0


class Visits:
    """A key's requests of the last minute, and those in flight; in this process."""

    def __init__(self) -> None:
        self.recent: deque[float] = deque()
        self.in_flight = 0

    def enter(self, key: Key, now: float) -> None:
        """Raises `JobError` (OVERLOADED) when the key has had its share."""
        terms = key.terms
        while self.recent and self.recent[0] <= now - MINUTE_S:
            self.recent.popleft()
        if terms.requests_per_minute is not None and len(self.recent) >= terms.requests_per_minute:
            wait_s = self.recent[0] + MINUTE_S - now
            raise _too_many(f"This key may ask {terms.requests_per_minute} times a minute.", wait_s)
        if terms.concurrency is not None and self.in_flight >= terms.concurrency:
            raise _too_many(f"This key may have {terms.concurrency} requests at once.", 1)
        self.recent.append(now)
        self.in_flight += 1


def _too_many(message: str, retry_after_s: float) -> JobError:
    return JobError(ErrorKind.OVERLOADED, message, code="rate_limit_exceeded", retry_after_s=retry_after_s)


def _given(headers: Headers, by_password: bool) -> str:
    """What the request has for a key, empty for nothing."""
    scheme, _, text = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return text.strip()
    if scheme.lower() == "basic" and by_password:
        try:
            return base64.b64decode(text, validate=True).decode("ascii").partition(":")[2]
        except ValueError:
            return ""
    return ""


class Guard:
    """Lets requests in: everybody while the store has no key, and from the first one on none without."""

    def __init__(self, store: Store, server_secret: Callable[[], bytes]) -> None:
        self._store = store
        self._secret = server_secret
        self._keys: dict[str, Key] = {}
        self._read_at: float | None = None
        self._reading = asyncio.Lock()
        self._visits: dict[str, Visits] = {}

    async def key_of(self, headers: Headers, *, by_password: bool = False) -> Key | None:
        """None while there are no keys. Raises `HttpError` (401), `JobError` when the store fails.

        `by_password`: the key may also be a browser's password (RFC 7617), under any user name.
        """
        keys = await self._known()
        if not keys:
            return None
        text = _given(headers, by_password)
        parts = text.split("_", 2)
        key = keys.get(parts[1]) if len(parts) == 3 and parts[0] == PREFIX else None
        # Compared even when no such key is there, so that the time tells nothing.
        given = hashed(text, self._secret())
        good = hmac.compare_digest(given, key.hash if key is not None else "0" * len(given))
        if key is None or not good or key.revoked_at is not None:
            error = HttpError(
                401, "Give a key that is valid here: Authorization: Bearer tt_...", "invalid_api_key"
            )
            error.headers["WWW-Authenticate"] = (
                'Basic realm="A key as the password"' if by_password else "Bearer"
            )
            raise error
        return key

    def check_operator(self, headers: Headers, path: str) -> None:
        """For routes of who runs the service: knows the server's secret. Raises `HttpError` (401)."""
        given = headers.get("authorization", "").removeprefix("Bearer ")
        if not hmac.compare_digest(given.encode(), hashed(path, self._secret()).encode()):
            raise HttpError(401, "This route is for who runs the service.", "operator_only")

    @contextmanager
    def visit(self, key: Key | None, path: str) -> Generator[None]:
        """One request of a key, as long as it lasts. Raises `JobError` when it may not come in."""
        if key is None:
            yield
            return
        if not key.terms.allows_route(path):
            raise HttpError(403, "This key is not for this route.", "route_not_allowed")
        visits = self._visits.setdefault(key.id, Visits())
        visits.enter(key, time.monotonic())
        try:
            yield
        finally:
            visits.in_flight -= 1

    @contextmanager
    def stay(self, key: Key | None) -> Generator[None]:
        """A job of a key that goes on after its request; it counts among those at once."""
        visits = self._visits.setdefault(key.id if key else "", Visits())
        visits.in_flight += 1
        try:
            yield
        finally:
            visits.in_flight -= 1

    async def _known(self) -> dict[str, Key]:
        async with self._reading:
            now = time.monotonic()
            if self._read_at is None or now - self._read_at > FRESH_S:
                try:
                    self._keys = {key.id: key for key in await self._store.run(all_keys)}
                except StoreError as error:
                    logger.error("%s", error)
                    raise JobError(
                        ErrorKind.UNAVAILABLE, "Keys cannot be checked now; try again later.", code="no_store"
                    ) from None
                self._read_at = now
            return self._keys
