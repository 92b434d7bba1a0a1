"""One request at the edge, from its arrival to the line in the log and the record in the ledger."""

from __future__ import annotations

import json
import sys
import time
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from starlette.types import Scope

from gateway.ledger import Ledger
from gateway.sending import Answer
from gateway.tickets import Ticket
from tracing import begin, traceparent

if TYPE_CHECKING:
    from opentelemetry.trace import Span


class Visit:
    """`outcome` is `ok`, `error`, `gone` (the caller left) or `aborted` (a stream broke off)."""

    def __init__(self, scope: Scope, answer: Answer, ticket: Ticket) -> None:
        self.scope = scope
        self.answer = answer
        self.ticket = ticket
        self.outcome: str | None = None
        self._arrived = time.monotonic()
        self._span: Span | None = None

    def trace(self, parent: str) -> None:
        """Begins the request's span, where traces are on; `parent` is the caller's traceparent."""
        method, path = self.scope["method"], self.scope["path"]
        self._span = begin(f"{method} {path}", parent, {"http.request.method": method, "url.path": path})
        if self._span is not None:
            self.ticket = replace(self.ticket, trace=traceparent(self._span))

    def end(self, ledger: Ledger, *, log: bool) -> None:
        outcome = self.outcome or ("error" if self.answer.status >= 400 else "ok")
        ledger.record(self.ticket, self.scope["path"], self.answer.status, outcome)
        if self._span is not None:
            self._span.set_attribute("http.response.status_code", self.answer.status)
            self._span.set_attribute("triptych.request_id", self.ticket.request_id)
            self._span.set_attribute("triptych.outcome", outcome)
            self._span.end()
        if log:
            self._log(outcome)

    def _log(self, outcome: str) -> None:
        """No query, body or key is in it: only whose key it was."""
        told = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "method": self.scope["method"],
            "path": self.scope["path"],
            "status": self.answer.status,
            "outcome": outcome,
            "ms": round((time.monotonic() - self._arrived) * 1000, 1),
            "bytes": self.answer.sent_bytes,
            "request_id": self.ticket.request_id,
            "key": self.ticket.key_id,
            "client": (self.scope.get("client") or ("",))[0],
        }
        with suppress(OSError):  # a full disk, or nobody who reads it: answers go on
            sys.stdout.write(json.dumps(told) + "\n")
            sys.stdout.flush()
