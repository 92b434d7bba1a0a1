"""A caller that speaks ASGI itself: in process, no HTTP client can hang up or see a cut connection."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from starlette.types import ASGIApp, Message


class Caller:
    """One POST. `hang_up` is a closed connection; `finished` tells whether the answer came to its end."""

    def __init__(self, app: ASGIApp, path: str, body: dict[str, Any], **headers: str) -> None:
        self._app = app
        self._scope: dict[str, Any] = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": "POST",
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "root_path": "",
            "headers": [
                (b"host", b"gateway"),
                (b"content-type", b"application/json"),
                *((name.lower().encode(), value.encode()) for name, value in headers.items()),
            ],
            "client": ("127.0.0.1", 1),
            "server": ("gateway", 80),
        }
        self._unsent = [json.dumps(body).encode()]
        self._gone = asyncio.Event()
        self.status = 0
        self.body = b""
        self.finished = False
        self.first_byte = asyncio.Event()
        self.task = asyncio.ensure_future(self._run())

    def hang_up(self) -> None:
        self._gone.set()

    async def _run(self) -> None:
        await self._app(self._scope, self._receive, self._send)

    async def _receive(self) -> Message:
        if self._unsent:
            return {"type": "http.request", "body": self._unsent.pop(), "more_body": False}
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            return
        self.body += message.get("body", b"")
        self.first_byte.set()
        self.finished = not message.get("more_body", False)


async def until(condition: Any, timeout_s: float = 30.0) -> None:
    """Waits until `condition()` is true. Raises TimeoutError."""
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.01)
