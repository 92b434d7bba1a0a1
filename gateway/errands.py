"""Work that goes on without its caller: jobs (`Prefer: respond-async`), and what an Idempotency-Key names."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field, replace
from typing import Any

from starlette.datastructures import Headers
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from gateway.auth import Guard
from gateway.errors import HttpError, error_body, error_for_status, log_bug, status_and_headers
from gateway.kept import LOST, RUNNING, Kept, KeptAnswer, Name, hash_of
from gateway.ledger import Ledger
from gateway.options import GatewayOptions
from gateway.sending import Captured, Work
from gateway.tickets import Taken
from jobs import ErrorKind, Event, JobError, Progress, Queued

MOST_LIVE = 1000
"""Jobs and idempotent requests at work; what waits in the runners is bounded there, and much less."""
SOON_S = 1.0
"""How long a job may take to be refused: within it the refusal itself is the answer."""
_WORTH_KEEPING = range(200, 500)
_COME_AGAIN = frozenset({408, 409, 425, 429, 499})


@dataclass(eq=False)
class Live:
    """A job at work, as far as its events tell."""

    id: str
    route: str
    created_at: float = field(default_factory=time.time)
    state: str = "queued"
    position: int | None = None
    wait_s: float | None = None
    step: int | None = None
    total: int | None = None
    begun: asyncio.Event = field(default_factory=asyncio.Event)
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[Captured] | None = None

    def saw(self, event: Event) -> None:
        if isinstance(event, Queued):
            self.position, self.wait_s = event.position, event.wait_s
        else:
            self.state, self.position, self.wait_s = RUNNING, None, None
        if isinstance(event, Progress):
            self.step, self.total = event.step, event.total
        self.begun.set()
        self.tell()

    def tell(self) -> None:
        """Wakes those who watch; each then sees the newest state only, however slowly it reads."""
        self.changed.set()
        self.changed = asyncio.Event()

    def told(self) -> dict[str, Any]:
        progress = None if self.step is None else {"step": self.step, "total": self.total}
        return {
            "id": self.id,
            "status": self.state,
            "route": self.route,
            "created_at": self.created_at,
            "position": self.position,
            "predicted_wait_s": self.wait_s,
            "progress": progress,
            "result": None,
        }


class Errands:
    """Owned by the gateway's event loop. What is at work is here; how it ended is in `Kept`."""

    def __init__(self, kept: Kept, guard: Guard, ledger: Ledger, options: GatewayOptions) -> None:
        self._kept = kept
        self._guard = guard
        self._ledger = ledger
        self._options = options
        self._live: dict[Name, Live] = {}
        self._once: dict[Name, tuple[str, asyncio.Task[Captured]]] = {}
        self._closing = False

    # --- jobs -----------------------------------------------------------------------------------------------

    async def start(self, work: Work) -> Response:
        """202 with the job, or the error that it met at once. Raises `JobError` (409, 429, 503)."""
        name = Name(work.ticket.key_id, "job", work.ticket.request_id)
        hashed = hash_of(work)
        if len(self._live) >= MOST_LIVE:
            raise JobError(ErrorKind.OVERLOADED, "Too many jobs are at work.", code="queue_full")
        known = await self._kept.reserve(name, work, hashed)
        if known is not None and known.request_hash != hashed:
            raise HttpError(409, "There is another job of this id: send a fresh X-Request-Id.", "id_in_use")
        if known is not None:
            return _accepted(name.id, await self.told(name))
        live = self._live[name] = Live(name.id, work.route)
        live.task = asyncio.create_task(self._carry_out(name, work, live))
        began = asyncio.ensure_future(live.begun.wait())
        await asyncio.wait((began, live.task), timeout=SOON_S, return_when=asyncio.FIRST_COMPLETED)
        began.cancel()
        if live.task.done() and not live.task.cancelled() and live.task.result().status >= 400:
            await self._kept.forget(name)
            return live.task.result().response()
        return _accepted(name.id, await self.told(name))

    async def told(self, name: Name) -> dict[str, Any]:
        """Where the job stands. Raises `JobError` (404)."""
        live = self._live.get(name)
        if live is not None:
            return live.told()
        kept = await self.ended(name)
        told = Live(name.id, kept.route, kept.created_at, kept.state).told()
        if kept.answer is not None:
            headers = Headers(raw=[(k.lower().encode(), v.encode()) for k, v in kept.answer.headers])
            told["result"] = {
                "status": kept.answer.status,
                "media_type": headers.get("content-type"),
                "bytes": len(kept.answer.body),
                "url": f"/jobs/{name.id}/result",
            }
        return told

    async def ended(self, name: Name) -> KeptAnswer:
        """Raises `JobError` (404) where there is no such job of this key."""
        kept = await self._kept.find(name)
        if kept is None:
            message = "There is no such job; results are kept for a time."
            raise JobError(ErrorKind.NOT_FOUND, message, code="job_not_found")
        return kept

    async def watch(self, name: Name) -> AsyncGenerator[dict[str, Any], None]:
        """The job's states as they change, the last when it has ended."""
        live = self._live.get(name)
        while live is not None and name in self._live:
            changed = live.changed
            yield live.told()
            await changed.wait()
        yield await self.told(name)

    async def cancel(self, name: Name) -> dict[str, Any]:
        """Ends the job within a step; one that has ended is forgotten. Raises `JobError` (404)."""
        live = self._live.get(name)
        if live is not None and live.task is not None:
            live.task.cancel()
            await asyncio.gather(live.task, return_exceptions=True)
            return await self.told(name)
        told = await self.told(name)
        await self._kept.forget(name)
        return {**told, "status": "deleted", "result": None}

    # --- requests that run once -----------------------------------------------------------------------------

    async def once(self, id: str, work: Work) -> Work:
        """Work that answers as the first request of this Idempotency-Key does. Raises `JobError` (409)."""
        name = Name(work.ticket.key_id, "once", id)
        hashed = hash_of(work)
        if name not in self._once:
            # Nothing is awaited between the look and the entry, so of many at once one is the first.
            task = asyncio.create_task(self._run_once(name, hashed, work))
            self._once[name] = (hashed, task)
            task.add_done_callback(lambda _: self._once.pop(name, None))
        first, task = self._once[name]
        if first != hashed:
            raise _other_body()

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            captured = await asyncio.shield(task)
            await captured.response()(scope, receive, send)

        return replace(work, app=app)

    async def _run_once(self, name: Name, hashed: str, work: Work) -> Captured:
        known = await self._kept.reserve(name, work, hashed)
        if known is not None and known.request_hash != hashed:
            raise _other_body()
        if known is not None and known.answer is not None:
            known.answer.headers.append(("Idempotent-Replayed", "true"))
            return known.answer
        age_s = 0 if known is None else time.time() - known.created_at
        if known is not None and known.state == RUNNING and age_s < work.options.timeout_s:
            raise HttpError(409, "This request is at work in another gateway.", "idempotency_in_progress")
        answer: Captured | None = None
        try:
            answer = await self._captured(work)
            return answer
        finally:
            if answer is not None and answer.status in _WORTH_KEEPING and answer.status not in _COME_AGAIN:
                await self._kept.finish(name, "done", answer)
            else:
                await self._kept.forget(name)

    # --- both -----------------------------------------------------------------------------------------------

    async def close(self) -> None:
        """Lets what is at work end, for a while; what does not is lost."""
        self._closing = True
        tasks = [live.task for live in self._live.values() if live.task is not None]
        tasks += [task for _, task in self._once.values()]
        if not tasks:
            return
        _, late = await asyncio.wait(tasks, timeout=self._options.drain_s)
        for task in late:
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)

    async def _carry_out(self, name: Name, work: Work, live: Live) -> Captured:
        ticket = replace(work.ticket, watch=live.saw, taken=Taken())  # the request itself made no job
        state, outcome, captured = LOST, "error", Captured()
        try:
            with self._guard.stay(ticket.key):
                captured = await self._captured(replace(work, ticket=ticket))
            state = "done" if captured.status < 400 else "failed"
            outcome = "ok" if captured.status < 400 else "error"
        except asyncio.CancelledError:
            state = outcome = LOST if self._closing else "cancelled"
            raise
        finally:
            self._ledger.record(ticket, work.route, captured.status, outcome)
            await asyncio.shield(self._kept.finish(name, state, captured if captured.status else None))
            del self._live[name]
            live.tell()
        return captured

    async def _captured(self, work: Work) -> Captured:
        """The answer, also when it is an error."""
        options = work.options
        try:
            async with asyncio.timeout(options.timeout_s + 2 * options.grace_s + 1):
                return await work.capture(options.max_kept_answer_bytes)
        except TimeoutError:
            return _captured_error(error_for_status(504))
        except JobError as error:
            return _captured_error(error)
        except Exception as error:  # noqa: BLE001 - its text may hold a prompt
            log_bug(error)
            return _captured_error(error_for_status(500))


def _captured_error(error: JobError) -> Captured:
    status, headers = status_and_headers(error)
    response = JSONResponse(error_body(error), status, headers)
    return Captured(response.status_code, list(response.headers.items()), bytes(response.body))


def _accepted(id: str, told: dict[str, Any]) -> Response:
    headers = {"Location": f"/jobs/{id}", "Preference-Applied": "respond-async"}
    return JSONResponse(told, 202, headers)


def _other_body() -> HttpError:
    message = "This Idempotency-Key was sent with another request: send a fresh one."
    return HttpError(409, message, "idempotency_key_reused")
