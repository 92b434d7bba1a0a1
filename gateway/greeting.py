"""The line that tells a person at the terminal that the service is up, and what to try."""

from __future__ import annotations

import asyncio
import logging

from gateway.health import Readiness

logger = logging.getLogger("triptych.gateway")

LOOK_EVERY_S = 0.5


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
    prompt = """'{"prompt": "a red circle on a blue background"}'"""
    logger.info(
        "Triptych is ready on %s. Try: curl %s/image -H 'Content-Type: application/json' -d %s -o circle.png",
        *(url, url, prompt),
    )
