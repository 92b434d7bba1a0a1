"""Whether the service can answer: each runner is asked at once, and none may hold the answer up."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from starlette.responses import JSONResponse, Response

from gateway.runners import RunnerClient


class Readiness:
    """Knows the runners once the service has been made; before that, nothing is ready."""

    def __init__(self) -> None:
        self._runners: Mapping[str, RunnerClient] = {}
        self._required: frozenset[str] = frozenset()
        self.draining = False
        """New work is refused, for the service is about to stop."""

    def watch(self, runners: Mapping[str, RunnerClient], required: frozenset[str]) -> None:
        self._runners = runners
        self._required = required
        self.draining = False

    async def report(self) -> dict[str, Any]:
        """`{"status": ready | loading | down | draining, "runners": {name: {state, why}}}`"""
        states = await asyncio.gather(*(runner.state() for runner in self._runners.values()))
        runners = dict(zip(self._runners, states, strict=True))
        needed = {state["state"] for name, state in runners.items() if name in self._required}
        if self.draining:
            status = "draining"
        elif not runners or ("loading" in needed and "down" not in needed):
            status = "loading"
        else:
            status = "ready" if needed <= {"ready"} else "down"
        return {"status": status, "runners": runners}

    async def response(self) -> Response:
        report = await self.report()
        ready = report["status"] == "ready"
        return JSONResponse(report, 200 if ready else 503, None if ready else {"Retry-After": "1"})
