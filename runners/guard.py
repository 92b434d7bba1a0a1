"""A runner's door: who comes over a network shows the token that it shares with the gateways.

The gateway beside it comes by a socket of the user's own, and needs none.
"""

from __future__ import annotations

import hmac
from typing import Any

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from settings import settings
from untimed import UntimedService

OPEN_ROUTES = frozenset({"/livez", "/readyz", "/healthz", "/metrics"})
"""For probes and Prometheus: they tell nothing of any job."""
REFUSED = {
    "error": {
        "type": "invalid_request_error",
        "message": "A runner needs the token of its gateways (TRIPTYCH_RUNNER_TOKEN).",
        "param": None,
        "code": "invalid_runner_token",
    }
}


class Guard:
    """ASGI middleware: 401 for calls over a network without the token."""

    def __init__(self, app: ASGIApp, token: str) -> None:
        self._app = app
        self._expected = f"Bearer {token}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        _, port = scope.get("server") or (None, None)  # a Unix socket has a path and no port
        if scope["type"] == "http" and port is not None and scope["path"] not in OPEN_ROUTES:
            shown = Headers(scope=scope).get("authorization", "").encode()
            if not hmac.compare_digest(shown, self._expected):
                await JSONResponse(REFUSED, 401)(scope, receive, send)
                return
        await self._app(scope, receive, send)


class GuardedService(UntimedService):
    """For `bentoml.service(service_class=...)` of the runners; without a token in the settings it is open."""

    def to_asgi(self, is_main: bool = True) -> Any:
        app = super().to_asgi(is_main)
        token = settings().runner_token
        if token:
            app.add_middleware(Guard, token=token)
        return app
