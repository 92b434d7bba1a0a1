"""One request at the edge, from its arrival to the line in the log and the record in the ledger."""

from __future__ import annotations

import json
import sys
import time
from contextlib import suppress
from datetime import UTC, datetime

from starlette.types import Scope

from gateway.ledger import Ledger
from gateway.sending import Answer
from gateway.tickets import Ticket


class Visit:
    """`outcome` is `ok`, `error`, `gone` (the caller left) or `aborted` (a stream broke off)."""

    def __init__(self, scope: Scope, answer: Answer, ticket: Ticket) -> None:
        self.scope = scope
        self.answer = answer
        self.ticket = ticket
        self.outcome: str | None = None
        self._arrived = time.monotonic()

    def end(self, ledger: Ledger, *, log: bool) -> None:
        outcome = self.outcome or ("error" if self.answer.status >= 400 else "ok")
        ledger.record(self.ticket, self.scope["path"], self.answer.status, outcome)
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
