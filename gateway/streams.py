"""Streamed answers: server-sent events in ASCII JSON, and a response that always closes its source."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, TypeVar

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from gateway.errors import error_body
from jobs import JobError

T = TypeVar("T")

EVENT_STREAM = "text/event-stream"
_NO_BUFFERING = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}


class ClosingStream(StreamingResponse):
    """Closes its generator at once when the caller leaves, instead of when it is garbage collected."""

    def __init__(
        self, content: AsyncGenerator[bytes, None], media_type: str, headers: dict[str, str]
    ) -> None:
        super().__init__(content, headers={**_NO_BUFFERING, **headers}, media_type=media_type)
        self._content = content

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with aclosing(self._content):
            await super().__call__(scope, receive, send)


def sse(data: Any, event: str | None = None) -> bytes:
    """One server-sent event. ASCII only, so that no reader can cut a character in two."""
    text = data if isinstance(data, str) else json.dumps(data, ensure_ascii=True, separators=(",", ":"))
    name = f"event: {event}\n" if event else ""
    return f"{name}data: {text}\n\n".encode("ascii")


def sse_error(error: JobError) -> bytes:
    return sse(error_body(error), "error")


async def peek(events: AsyncGenerator[T, None]) -> T:
    """The first event: a job that fails at its checks can still be answered with its proper status.

    Raises `JobError`; the generator is closed then.
    """
    try:
        return await anext(events)
    except BaseException:
        await events.aclose()
        raise


async def rejoin(first: T, rest: AsyncGenerator[T, None]) -> AsyncGenerator[T, None]:
    """The events again, with the one that `peek` took in front."""
    async with aclosing(rest):
        yield first
        async for event in rest:
            yield event
