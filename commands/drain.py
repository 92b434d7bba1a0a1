"""`triptych drain`."""

from __future__ import annotations

from pathlib import Path

import httpx

from commands.terminal import CommandError, Exit, say
from gateway.auth import DRAIN_ROUTE
from gateway.keys import hashed, server_secret
from gateway.store import StoreError
from settings import settings


def drain() -> None:
    """Make the service on HOST:PORT refuse new work and say so on /readyz, before it is stopped.

    What is at work goes on. For a preStop hook: SIGTERM comes next, and gives it TRIPTYCH_DRAIN_S to end.
    """
    options = settings()
    url = f"{options.url}{DRAIN_ROUTE}"
    try:
        secret = server_secret(options.secret, Path(options.state_dir, "secret"))
        answer = httpx.post(url, headers={"Authorization": f"Bearer {hashed(DRAIN_ROUTE, secret)}"})
    except (httpx.HTTPError, StoreError) as error:
        raise CommandError(f"{url} cannot be reached: {type(error).__name__}.", Exit.UNREACHABLE) from None
    if answer.status_code == 401:
        raise CommandError("The service has another secret: is TRIPTYCH_STATE_DIR its own?", Exit.UNREACHABLE)
    say("The service drains: /readyz is 503, and new work is refused.")
