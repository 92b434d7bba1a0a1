"""Who is being served: one ticket a request, carried in a context variable past BentoML to the endpoint."""

from __future__ import annotations

import secrets
from contextvars import ContextVar
from dataclasses import dataclass, field

from gateway.limits import fresh_id
from gateway.schemas import MAX_SEED


@dataclass(frozen=True, slots=True)
class Ticket:
    """`request_id` is what the caller sees and may choose; `job_id` is ours, and unique."""

    request_id: str
    job_id: str = field(default_factory=fresh_id)


CURRENT: ContextVar[Ticket] = ContextVar("gateway_ticket")


def current_ticket() -> Ticket:
    """The request's ticket; a fresh one for a call that did not come through the edge."""
    ticket = CURRENT.get(None)
    return ticket or Ticket(fresh_id())


def seed_or_fresh(seed: int | None) -> int:
    return secrets.randbelow(MAX_SEED + 1) if seed is None else seed
