"""Who is being served: one ticket a request, carried in a context variable past BentoML to the endpoint."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field

from gateway.keys import Key
from gateway.limits import fresh_id
from gateway.schemas import MAX_SEED
from gateway.units import Units
from jobs import Event


@dataclass(slots=True)
class Taken:
    """What a request's jobs have taken so far."""

    model: str = ""
    units: Units = field(default_factory=Units)
    queue_ms: float = 0
    work_ms: float = 0
    jobs: int = 0


@dataclass(frozen=True, slots=True)
class Ticket:
    """`request_id` is what the caller sees and may choose; `job_id` is ours, and unique."""

    request_id: str
    job_id: str = field(default_factory=fresh_id)
    key: Key | None = None
    taken: Taken = field(default_factory=Taken)
    trace: str = ""
    """The request's span, as a W3C traceparent; empty where nobody traces."""
    watch: Callable[[Event], None] | None = None
    """Is told every event of the request's jobs."""

    @property
    def key_id(self) -> str:
        """Whose request it is; empty where there are no keys."""
        return self.key.id if self.key else ""


CURRENT: ContextVar[Ticket] = ContextVar("gateway_ticket")


def current_ticket() -> Ticket:
    """The request's ticket; a fresh one for a call that did not come through the edge."""
    ticket = CURRENT.get(None)
    return ticket or Ticket(fresh_id())


def seed_or_fresh(seed: int | None) -> int:
    return secrets.randbelow(MAX_SEED + 1) if seed is None else seed
