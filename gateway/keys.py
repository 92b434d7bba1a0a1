"""Keys: shown once, kept as keyed hashes, each with its terms: what it may ask for, and how much of it."""

from __future__ import annotations

import fnmatch
import hmac
import os
import secrets
import time
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Literal

import sqlalchemy as sql
from pydantic import BaseModel, ConfigDict, Field

from gateway.store import KEYS, Store, StoreError, insert_new

PREFIX = "tt"
UNITS = ("tokens", "pixel_steps", "audio_s")

Quota = Annotated[float | None, Field(ge=0)]


class Terms(BaseModel):
    """What a key may do; None is without a limit."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    routes: tuple[str, ...] = ()
    """Paths it may ask, `/v1/*` with a star; empty for all."""
    models: tuple[str, ...] = ()
    """Models it may ask, by their own names; empty for all."""
    requests_per_minute: Annotated[int | None, Field(ge=1)] = None
    concurrency: Annotated[int | None, Field(ge=1)] = None
    """Requests at once."""
    tokens: Quota = None
    """Prompt and completion tokens a period."""
    pixel_steps: Quota = None
    """Width times height times steps, in pixels, a period."""
    audio_s: Quota = None
    """Seconds of sound a period."""
    period: Literal["day", "month", "ever"] = "day"
    """What the quotas are for; days and months are UTC's."""

    def allows_route(self, path: str) -> bool:
        return not self.routes or any(fnmatch.fnmatchcase(path, pattern) for pattern in self.routes)

    def allows_model(self, name: str) -> bool:
        return not self.models or name in self.models

    def quotas(self) -> dict[str, float]:
        """The limited units and their amounts a period."""
        given = {unit: getattr(self, unit) for unit in UNITS}
        return {unit: amount for unit, amount in given.items() if amount is not None}


class Key(BaseModel):
    """A key as it is kept; the secret itself is nowhere."""

    model_config = ConfigDict(frozen=True)

    id: str
    name: str
    hash: str
    created_at: float
    revoked_at: float | None = None
    terms: Terms


def hashed(secret: str, server_secret: bytes) -> str:
    return hmac.new(server_secret, secret.encode(), sha256).hexdigest()


def create_key(store: Store, server_secret: bytes, name: str, terms: Terms) -> tuple[Key, str]:
    """The new key, and its text, which cannot be had again. Raises `StoreError`."""
    id = secrets.token_hex(6)
    text = f"{PREFIX}_{id}_{secrets.token_urlsafe(32)}"
    key = Key(id=id, name=name, hash=hashed(text, server_secret), created_at=time.time(), terms=terms)
    with store.begin() as connection:
        insert_new(connection, KEYS, {**key.model_dump(), "terms": terms.model_dump(mode="json")})
    return key, text


def all_keys(connection: sql.Connection) -> list[Key]:
    """Oldest first, the revoked ones too."""
    rows = connection.execute(sql.select(KEYS).order_by(KEYS.c.created_at)).mappings()
    return [Key.model_validate(dict(row)) for row in rows]


def revoke_key(store: Store, id: str) -> bool:
    """False when there is no such key, or it is revoked already. Raises `StoreError`."""
    revoked = sql.update(KEYS).where(KEYS.c.id == id, KEYS.c.revoked_at.is_(None))
    with store.begin() as connection:
        return bool(connection.execute(revoked.values(revoked_at=time.time())).rowcount)


def server_secret(given: str | None, beside: Path) -> bytes:
    """What the hashes are keyed with: the setting, or a file of this machine that is made when it is missing.

    Raises `StoreError`.
    """
    if given is not None:
        return given.encode()
    try:
        beside.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not beside.exists():
            fresh = beside.with_name(f"{beside.name}.{os.getpid()}")
            fresh.touch(mode=0o600)
            fresh.write_text(secrets.token_urlsafe(32), encoding="ascii")
            with suppress(FileExistsError):  # of two that are made at once one stays
                os.link(fresh, beside)
            fresh.unlink()
        return beside.read_bytes()
    except OSError as error:
        raise StoreError(f"The secret of the keys cannot be kept in {beside}: {error.strerror}.") from None
