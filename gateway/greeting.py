"""The line that tells a person at the terminal that the service is up, and what to try."""

from __future__ import annotations

import asyncio
import logging

from gateway.health import Readiness

logger = logging.getLogger("triptych.gateway")

LOOK_EVERY_S = 0.5
TRY = {
    "image": """{"prompt": "a red circle on a blue background"}' -o circle.png""",
    "speech": """{"text": "one two three four"}' -o four.wav""",
    "text": """{"prompt": "Once upon a time"}'""",
}
"""What to send first, by runner; a picture is worth most."""


async def greet(readiness: Readiness, url: str) -> None:
    """Says once when every required runner is ready; until then, what is down and why, when that changes."""
    said: set[str] = set()
    while (report := await readiness.report())["status"] != "ready":
        for name, runner in report["runners"].items():
            line = f"The {name} runner is down: {runner['why']}"
            if runner["state"] == "down" and line not in said:
                said.add(line)
                logger.error(line)
        await asyncio.sleep(LOOK_EVERY_S)
    served = next((name for name in TRY if report["runners"].get(name, {}).get("state") == "ready"), None)
    call = f"curl {url}/{served} -H 'Content-Type: application/json' -d '{TRY[served]}" if served else ""
    logger.info("Triptych is ready on %s.%s", url, call and f" Try: {call}")
