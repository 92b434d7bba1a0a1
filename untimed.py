"""A BentoML service without BentoML's request timer, request counter and spans.

The timer is set for each request and never taken back: until it fires, long after the answer, it holds the
request's context, 4 to 8 KB (measured). With the long timeouts that streams need, memory only grows. And it
waits for a first byte even when nothing is left that could send one. Deadlines travel in jobs instead.

The counter makes a metric of every path that anybody asks for, there or not, and keeps it for good: 100
requests of long unknown paths took 134 MB of files (measured). Our own metrics know only what exists.

The spans are made for every piece of a stream, and nobody sees them (`tracing` has its own provider): a
seventh of what it costs to send one (measured).
"""

from __future__ import annotations

import logging
from typing import Any

import attrs
import bentoml
from starlette.applications import Starlette

_LEFT_OUT = ("TimeoutMiddleware", "RunnerTrafficMetricsMiddleware", "OpenTelemetryMiddleware")


@attrs.define
class UntimedService(bentoml.Service[Any]):
    """For `bentoml.service(service_class=...)`; `traffic.timeout` then only bounds its clients' patience."""

    def to_asgi(self, is_main: bool = True) -> Any:
        # BentoML lets only its own log speak below warnings. Here: once in each process that serves.
        logging.getLogger("triptych").setLevel(logging.INFO)
        app = super().to_asgi(is_main)
        if isinstance(app, Starlette):
            layers: list[Any] = app.user_middleware
            app.user_middleware = [each for each in layers if each.cls.__name__ not in _LEFT_OUT]
        return app
