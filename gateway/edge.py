"""Our outermost room, an ASGI middleware: what comes in is checked here, what goes out is shaped here.

BentoML answers a bad request with a list, logs the value that was sent, reads bodies of any size and cancels
nothing when a caller leaves. So the edge reads the body (bounded), checks it against the endpoint's own
schema, and hands it on for BentoML to read again; it puts the request id on every answer, gives every error
the one shape, and cancels the endpoint when the caller has gone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from pydantic import BaseModel, ValidationError
from starlette.datastructures import Headers
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from gateway.auth import DRAIN_ROUTE, OPEN_ROUTES
from gateway.doors import Call, Doors, Found, WrongMethodError
from gateway.errors import ErrorResponse, HttpError, error_for_status, log_bug, or_error
from gateway.explain import explain
from gateway.forms import file_fields, form_as_json
from gateway.health import Readiness
from gateway.limits import (
    ClientGoneError,
    check_body_type,
    fresh_id,
    idempotency_key,
    read_body,
    request_id,
    wants_async,
)
from gateway.office import Office
from gateway.options import GatewayOptions
from gateway.page import PAGE, page
from gateway.sending import Answer, StreamAbortedError, Work
from gateway.tickets import Ticket
from gateway.visits import Visit
from jobs import ErrorKind, JobError

_METRICS = "/metrics"
_READING = ("GET", "HEAD")
_WITH_BODY = frozenset({"POST", "PUT", "PATCH"})


class Edge:
    """`schemas` maps BentoML's endpoints to what their bodies must be; `document` makes /docs.json."""

    def __init__(
        self,
        app: ASGIApp,
        schemas: Mapping[str, type[BaseModel]],
        document: Callable[[], dict[str, Any]],
        readiness: Readiness,
        doors: Doors,
        office: Office,
        options: GatewayOptions,
    ) -> None:
        self._app = app
        self._schemas = schemas
        self._document = document
        self._doors = doors
        self._readiness = readiness
        self._office = office
        self._options = options
        self._own = {
            PAGE: page,
            "/livez": self._alive,
            "/healthz": self._alive,
            "/readyz": readiness.response,
            "/docs.json": self._docs,
        }

    async def _alive(self) -> Response:
        return PlainTextResponse("ok\n")

    async def _docs(self) -> Response:
        return JSONResponse(self._document())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        try:
            id = request_id(headers) or fresh_id()
        except HttpError as refusal:
            answer = Answer(scope, receive, send, fresh_id())
            await answer.respond(self._doors.refusal(scope["path"], refusal))
            return
        answer = Answer(scope, receive, send, id)
        visit = Visit(scope, answer, Ticket(id))
        try:
            await self._let_in(visit, receive, headers)
        except JobError as error:
            await answer.respond(self._doors.refusal(scope["path"], error))
        except ClientGoneError:
            visit.outcome = "gone"
            await answer.close()
        except StreamAbortedError:
            visit.outcome = "aborted"  # the server closes the connection of an answer that has no end
        except Exception as error:  # noqa: BLE001 - see _broken
            await _broken(answer, error)
        finally:
            visit.end(self._office.ledger, log=self._options.access_log)

    async def _let_in(self, visit: Visit, receive: Receive, headers: Headers) -> None:
        path = visit.scope["path"]
        if path in OPEN_ROUTES:
            await self._route(visit, receive, headers)
            return
        if path == DRAIN_ROUTE and visit.scope["method"] == "POST":
            self._office.guard.check_operator(headers, path)
            self._readiness.draining = True
            await visit.answer.respond(await self._readiness.response())
            return
        visit.trace(headers.get("traceparent", ""))
        key = await self._office.guard.key_of(headers, by_password=path == PAGE)
        visit.ticket = replace(visit.ticket, key=key)
        with self._office.guard.visit(key, path):
            if self._readiness.draining and visit.scope["method"] == "POST":
                message = "The service is about to stop; ask another one, or try again later."
                raise JobError(ErrorKind.UNAVAILABLE, message, code="draining", retry_after_s=5)
            await self._route(visit, receive, headers)

    async def _route(self, visit: Visit, receive: Receive, headers: Headers) -> None:
        scope, answer = visit.scope, visit.answer
        path, method = scope["path"], scope["method"]
        if (path in self._own or path == _METRICS) and method not in _READING:
            raise WrongMethodError(_READING)
        if path in self._own:
            await answer.respond(await self._own[path]())
        elif not path.isprintable():
            raise HttpError(404, "There is no such route.", "unknown_route")
        elif method == "POST" and path in self._schemas:
            body, _ = await self._checked_body(headers, receive, self._schemas[path])
            _name_body(scope, len(body))
            await self._run(visit, Work(self._app, scope, body, visit.ticket, self._options), receive)
        elif found := self._doors.find(method, path):
            await self._door(found, visit, receive)
        else:
            if method in _WITH_BODY and path not in self._schemas:
                check_body_type(headers)
            await self._app(scope, receive, answer.send)

    async def _door(self, found: Found, visit: Visit, receive: Receive) -> None:
        door, scope, ticket = found.door, visit.scope, visit.ticket
        body, request = b"", None
        if door.request is not None:
            body, request = await self._checked_body(Headers(scope=scope), receive, door.request)
        call = Call(ticket=ticket, path=found.path, runners=self._doors.runners, options=self._options)

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            response = await or_error(door.answer(request, call), door.refuse)
            await response(scope, receive, send)

        await self._run(visit, Work(app, scope, body, ticket, self._options), receive)

    async def _run(self, visit: Visit, work: Work, receive: Receive) -> None:
        headers = Headers(scope=work.scope)
        once = idempotency_key(headers)
        if work.body and wants_async(headers):
            await visit.answer.respond(await self._office.errands.start(work))
            return
        if work.body and once is not None:
            work = await self._office.errands.once(once, work)
        await work.run(receive, visit.answer, self._office.later)

    async def _checked_body(
        self, headers: Headers, receive: Receive, schema: type[BaseModel]
    ) -> tuple[bytes, BaseModel]:
        """The body as JSON that the schema takes, and what the schema makes of it. Raises `JobError`."""
        options = self._options
        takes_files = bool(file_fields(schema))
        is_form = check_body_type(headers, forms=takes_files)
        most_bytes = options.max_media_body_bytes if takes_files else options.max_body_bytes
        body = await read_body(headers, receive, most_bytes, options.body_timeout_s)
        if is_form:
            body = await form_as_json(headers, body, schema)
        try:
            return body, schema.model_validate_json(body)
        except ValidationError as error:
            raise explain(error) from None


async def _broken(answer: Answer, error: Exception) -> None:
    """Answers for a bug. BentoML's timeout layer, outside, waits for the first byte even when nothing is left
    that could send it: an exception let through would have the caller wait for the whole timeout.
    """
    log_bug(error)
    if not answer.started:
        await answer.respond(ErrorResponse(error_for_status(500)))


def _name_body(scope: Scope, length: int) -> None:
    """The headers of the body as it is handed on: plain JSON in the spelling that BentoML knows."""
    ours = (b"content-type", b"content-length", b"transfer-encoding", b"content-encoding")
    headers: list[tuple[bytes, bytes]] = [(k, v) for k, v in scope["headers"] if k.lower() not in ours]
    headers += [(b"content-type", b"application/json"), (b"content-length", str(length).encode())]
    scope["headers"] = headers
