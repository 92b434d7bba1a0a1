"""The first line for a person names an endpoint that is served."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from gateway.greeting import greet


class Ready:
    """The verbs of `gateway.health.Readiness`."""

    def __init__(self, served: str) -> None:
        self._served = served

    async def report(self) -> dict[str, Any]:
        states = {name: "ready" if name == self._served else "down" for name in ("text", "image", "speech")}
        return {"status": "ready", "runners": {name: {"state": state} for name, state in states.items()}}


@pytest.mark.parametrize("served", ["text", "image", "speech"])
async def test_what_to_try_is_served(served: str, caplog: pytest.LogCaptureFixture) -> None:
    readiness: Any = Ready(served)
    with caplog.at_level(logging.INFO, "triptych.gateway"):
        await greet(readiness, "http://127.0.0.1:3000")
    assert f"is ready on http://127.0.0.1:3000. Try: curl http://127.0.0.1:3000/{served} " in caplog.text
