"""A BentoML service without BentoML's request timer.

The timer is set for each request and never taken back: until it fires, long after the answer, it holds the
request's context, 4 to 8 KB (measured). With the long timeouts that streams need, memory only grows. And it
waits for a first byte even when nothing is left that could send one. Deadlines travel in jobs instead.
"""

from __future__ import annotations

from typing import Any

import attrs
import bentoml
from starlette.applications import Starlette


@attrs.define
class UntimedService(bentoml.Service[Any]):
    """For `bentoml.service(service_class=...)`; `traffic.timeout` then only bounds its clients' patience."""

    def to_asgi(self, is_main: bool = True) -> Any:
        app = super().to_asgi(is_main)
        if isinstance(app, Starlette):
            layers: list[Any] = app.user_middleware
            app.user_middleware = [each for each in layers if each.cls.__name__ != "TimeoutMiddleware"]
        return app
