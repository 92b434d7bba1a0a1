"""Draining: new work is refused, what is at work goes on, and only who has the secret may order it."""

from __future__ import annotations

import asyncio

import httpx

from gateway.auth import DRAIN_ROUTE
from gateway.keys import hashed
from tests.api.caller import until
from tests.api.fakes import SECRET, FakeRunner
from tests.api.test_errors import error_of

OPERATOR = {"Authorization": f"Bearer {hashed(DRAIN_ROUTE, SECRET.encode())}"}


async def test_draining(client: httpx.AsyncClient, runners: dict[str, FakeRunner]) -> None:
    for wrong in ({}, {"Authorization": "Bearer x"}, {"Authorization": f"Bearer {SECRET}"}):
        error_of(await client.post(DRAIN_ROUTE, headers=wrong), 401)
    assert (await client.get("/readyz")).status_code == 200
    at_work = asyncio.create_task(client.post("/text", json={"prompt": "hang"}))
    await until(lambda: runners["text"].live)
    await client.post(DRAIN_ROUTE, headers=OPERATOR)
    ready = await client.get("/readyz")
    assert (ready.status_code, ready.json()["status"]) == (503, "draining")
    refused = await client.post("/text", json={"prompt": "x"})
    assert error_of(refused, 503)["code"] == "draining"
    assert int(refused.headers["Retry-After"]) >= 1
    error_of(await client.post("/v1/completions", json={"prompt": "x"}), 503)
    assert (await client.get("/livez")).status_code == 200
    assert not at_work.done()
    next(iter(runners["text"].live.values())).set()
    assert (await at_work).status_code == 499
