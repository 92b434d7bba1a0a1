"""How one answer leaves: with its request id, every error in one shape, and kept in mind for the books."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.errors import SHAPED, ErrorResponse, HttpError, error_for_status
from gateway.limits import ClientGoneError
from gateway.options import GatewayOptions
from gateway.tickets import CURRENT, Ticket


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
        self.status = 0
        self.sent_bytes = 0
        self.complete = False

    @property
    def started(self) -> bool:
        return self.status != 0

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

    async def close(self) -> None:
        """Nobody reads this; the metrics outside count a request only at its answer's end."""
        if self.complete:
            return
        if not self.started:
            await self.respond(ErrorResponse(HttpError(499, "The caller has gone.", "caller_gone")))
        else:
            await self.send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _pass(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            MutableHeaders(scope=message)["X-Request-Id"] = self._id
            self.status = int(message["status"])
        elif message["type"] == "http.response.body":
            self.complete = not message.get("more_body", False)
            self.sent_bytes += len(message.get("body", b""))
        await self._send(message)


@dataclass(slots=True)
class Captured:
    """An answer that is kept instead of sent."""

    status: int = 0
    headers: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])
    body: bytes = b""

    def response(self, **more: str) -> Response:
        """The answer again. `more` headers may be added."""
        response = Response(self.body, self.status)
        del response.headers["content-length"]
        for name, value in (*self.headers, *more.items()):
            if name.lower() != "x-request-id":
                response.headers.append(name, value)
        if "content-length" not in response.headers:
            response.headers["content-length"] = str(len(self.body))
        return response


@dataclass(slots=True)
class Work:
    """One request's endpoint, ready to run: its checked body, and the app that takes it."""

    app: ASGIApp
    scope: Scope
    body: bytes
    ticket: Ticket
    options: GatewayOptions

    @property
    def route(self) -> str:
        return str(self.scope["path"])

    async def capture(self, most_bytes: int, ticket: Ticket | None = None) -> Captured:
        """Runs it to its end for nobody in particular. Raises what the app raises."""
        captured = Captured()
        parts = bytearray()

        async def send(message: Message) -> None:
            if message["type"] == "http.response.start":
                captured.status = int(message["status"])
                captured.headers = [(k.decode("latin-1"), v.decode("latin-1")) for k, v in message["headers"]]
            elif message["type"] == "http.response.body":
                parts.extend(message.get("body", b""))
                if len(parts) > most_bytes:
                    raise HttpError(500, "The answer is larger than what is kept.", "answer_too_large")

        scope = dict(self.scope)
        answer = Answer(scope, _nothing, send, self.ticket.request_id)
        CURRENT.set(ticket or self.ticket)
        await self.app(scope, _replay(self.body), answer.send)
        captured.body = bytes(parts)
        return captured

    async def run(
        self, receive: Receive, answer: Answer, later: Callable[[asyncio.Task[None]], None]
    ) -> None:
        """Runs it beside a look-out for the caller's leaving, which ends it, or leaves it to `later`.

        Raises `ClientGoneError`, `StreamAbortedError` and what the app raises.
        """
        CURRENT.set(self.ticket)
        app = asyncio.ensure_future(self._app_task(answer))
        leaving = asyncio.ensure_future(_disconnected(receive))
        kept = False
        try:
            async with asyncio.timeout(self.options.timeout_s + 2 * self.options.grace_s + 1):
                await asyncio.wait((app, leaving), return_when=asyncio.FIRST_COMPLETED)
                if not app.done() and answer.complete:
                    await asyncio.wait((app,))
            if not app.done():
                kept = self.options.vanished == "finish"
                raise ClientGoneError
            await app
        except TimeoutError:
            if answer.started:
                raise StreamAbortedError from None
            raise error_for_status(504) from None
        finally:
            leaving.cancel()
            if kept:
                later(app)
            else:
                app.cancel()
                await asyncio.gather(app, return_exceptions=True)
            await asyncio.gather(leaving, return_exceptions=True)

    async def _app_task(self, answer: Answer) -> None:
        await self.app(self.scope, _replay(self.body), answer.send)


def _replay(body: bytes) -> Receive:
    """The body once, and then a caller who stays."""
    unread = [body]
    stays = asyncio.Event()

    async def receive() -> Message:
        if unread:
            return {"type": "http.request", "body": unread.pop(), "more_body": False}
        await stays.wait()
        return {"type": "http.disconnect"}

    return receive


async def _nothing() -> Message:
    return {"type": "http.disconnect"}


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
