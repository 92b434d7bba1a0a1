"""Our outermost room, an ASGI middleware: what comes in is checked here, what goes out is shaped here.

BentoML answers a bad request with a list, logs the value that was sent, reads bodies of any size and cancels
nothing when a caller leaves. So the edge reads the body (bounded), checks it against the endpoint's own
schema, and hands it on for BentoML to read again; it puts the request id on every answer, gives every error
the one shape, and cancels the endpoint when the caller has gone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from pydantic import BaseModel, ValidationError
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.doors import Call, Doors, Found
from gateway.errors import SHAPED, ErrorResponse, HttpError, error_for_status, log_bug, or_error
from gateway.explain import explain
from gateway.forms import file_fields, form_as_json
from gateway.health import Readiness
from gateway.limits import ClientGoneError, check_body_type, fresh_id, read_body, request_id
from gateway.options import GatewayOptions
from gateway.tickets import CURRENT, Ticket
from jobs import JobError

_WITH_BODY = frozenset({"POST", "PUT", "PATCH"})


class StreamAbortedError(Exception):
    """A stream that cannot say in its own format that it failed: the connection is closed unfinished."""


class Answer:
    """Sends one answer: adds the request id, and puts errors of the layers below into our words."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, id: str) -> None:
        self._scope = scope
        self._receive = receive
        self._send = send
        self._id = id
        self._replaced = False
        self.started = False
        self.complete = False

    async def send(self, message: Message) -> None:
        """Takes what the layers below send; one of their errors is dropped for one of ours."""
        if self._replaced:
            return
        if message["type"] == "http.response.start":
            status = int(message["status"])
            if status >= 400 and not self._scope.get(SHAPED):
                self._replaced = True
                theirs = Headers(raw=message["headers"])
                kept = {name: theirs[name] for name in ("Allow", "Retry-After") if name in theirs}
                await self.respond(ErrorResponse(error_for_status(status), kept))
                return
        await self._pass(message)

    async def respond(self, response: Response) -> None:
        await response(self._scope, self._receive, self._pass)

    async def _pass(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            MutableHeaders(scope=message)["X-Request-Id"] = self._id
            self.started = True
        elif message["type"] == "http.response.body":
            self.complete = not message.get("more_body", False)
        await self._send(message)


class Edge:
    """`schemas` maps BentoML's endpoints to what their bodies must be; `document` makes /docs.json."""

    def __init__(
        self,
        app: ASGIApp,
        schemas: Mapping[str, type[BaseModel]],
        document: Callable[[], dict[str, Any]],
        readiness: Readiness,
        doors: Doors,
        options: GatewayOptions,
    ) -> None:
        self._app = app
        self._schemas = schemas
        self._document = document
        self._doors = doors
        self._options = options
        self._own = {
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
            await answer.respond(ErrorResponse(refusal))
            return
        answer = Answer(scope, receive, send, id)
        try:
            await self._route(scope, receive, answer, headers, Ticket(id))
        except JobError as error:
            await answer.respond(self._doors.refusal(scope["path"], error))
        except ClientGoneError:
            await _close_the_books(answer)
        except StreamAbortedError:
            return  # the server closes the connection of an answer that has no end
        except Exception as error:  # noqa: BLE001 - see _broken
            await _broken(answer, error)

    async def _route(
        self, scope: Scope, receive: Receive, answer: Answer, headers: Headers, ticket: Ticket
    ) -> None:
        path, method = scope["path"], scope["method"]
        if path in self._own and method in ("GET", "HEAD"):
            await answer.respond(await self._own[path]())
        elif not path.isprintable():
            raise HttpError(404, "There is no such route.", "unknown_route")
        elif method == "POST" and path in self._schemas:
            body, _ = await self._checked_body(headers, receive, self._schemas[path])
            _name_body(scope, len(body))
            await self._endpoint(self._app, scope, body, receive, answer, ticket)
        elif found := self._doors.find(method, path):
            await self._door(found, scope, receive, answer, ticket)
        else:
            if method in _WITH_BODY and path not in self._schemas:
                check_body_type(headers)
            await self._app(scope, receive, answer.send)

    async def _door(
        self, found: Found, scope: Scope, receive: Receive, answer: Answer, ticket: Ticket
    ) -> None:
        door = found.door
        body, request = b"", None
        if door.request is not None:
            body, request = await self._checked_body(Headers(scope=scope), receive, door.request)
        call = Call(ticket=ticket, path=found.path, runners=self._doors.runners, options=self._options)

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            response = await or_error(door.answer(request, call), door.refuse)
            await response(scope, receive, send)

        await self._endpoint(app, scope, body, receive, answer, ticket)

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

    async def _endpoint(
        self, endpoint: ASGIApp, scope: Scope, body: bytes, receive: Receive, answer: Answer, ticket: Ticket
    ) -> None:
        """Runs the endpoint beside a look-out for the caller's leaving; the first to end ends the other."""
        gone = asyncio.Event()
        unread = [body]

        async def replay() -> Message:
            if unread:
                return {"type": "http.request", "body": unread.pop(), "more_body": False}
            await gone.wait()
            return {"type": "http.disconnect"}

        CURRENT.set(ticket)
        app = asyncio.ensure_future(endpoint(scope, replay, answer.send))
        leaving = asyncio.ensure_future(_disconnected(receive))
        try:
            async with asyncio.timeout(self._options.timeout_s + 2 * self._options.grace_s + 1):
                await asyncio.wait((app, leaving), return_when=asyncio.FIRST_COMPLETED)
                if not app.done() and answer.complete:
                    await asyncio.wait((app,))
            if not app.done():
                raise ClientGoneError
            await app
        except TimeoutError:
            if answer.started:
                raise StreamAbortedError from None
            raise error_for_status(504) from None
        finally:
            leaving.cancel()
            app.cancel()
            await asyncio.gather(app, leaving, return_exceptions=True)


async def _broken(answer: Answer, error: Exception) -> None:
    """Answers for a bug. BentoML's timeout layer, outside, waits for the first byte even when nothing is left
    that could send it: an exception let through would have the caller wait for the whole timeout.
    """
    log_bug(error)
    if not answer.started:
        await answer.respond(ErrorResponse(error_for_status(500)))


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _name_body(scope: Scope, length: int) -> None:
    """The headers of the body as it is handed on: plain JSON in the spelling that BentoML knows."""
    ours = (b"content-type", b"content-length", b"transfer-encoding", b"content-encoding")
    headers: list[tuple[bytes, bytes]] = [(k, v) for k, v in scope["headers"] if k.lower() not in ours]
    headers += [(b"content-type", b"application/json"), (b"content-length", str(length).encode())]
    scope["headers"] = headers


async def _close_the_books(answer: Answer) -> None:
    """Nobody reads this; the access log and the metrics outside count a request only at its answer's end."""
    if answer.complete:
        return
    last: Message = {"type": "http.response.body", "body": b"", "more_body": False}
    if not answer.started:
        response = ErrorResponse(HttpError(499, "The caller has gone.", "caller_gone"))
        await answer.respond(response)
    else:
        await answer.send(last)
