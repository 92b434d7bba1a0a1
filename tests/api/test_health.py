"""Health answers at once, whatever the runners do."""

from __future__ import annotations

import asyncio

import httpx
import pytest

from tests.api.fakes import FakeRunner

Runners = dict[str, FakeRunner]


async def test_alive(client: httpx.AsyncClient, runners: Runners) -> None:
    for runner in runners.values():
        runner.condition = "mute"
    answer = await client.get("/livez")
    assert (answer.status_code, answer.text) == (200, "ok\n")


@pytest.mark.parametrize(
    ("conditions", "status"),
    [
        ({}, "ready"),
        ({"text": "loading"}, "loading"),
        ({"text": "loading", "image": "down"}, "down"),
        ({"speech": "down"}, "down"),
    ],
)
async def test_ready_as_its_runners_are(
    client: httpx.AsyncClient, runners: Runners, conditions: dict[str, str], status: str
) -> None:
    for name, condition in conditions.items():
        runners[name].condition = condition
    answer = await client.get("/readyz")
    assert answer.status_code == (200 if status == "ready" else 503)
    report = answer.json()
    assert report["status"] == status
    states = {name: runner["state"] for name, runner in report["runners"].items()}
    assert states == {"text": "ready", "image": "ready", "speech": "ready"} | conditions
    assert report["runners"]["text"]["why"] == "0 cancelled, 0 alive"


async def test_a_runner_that_does_not_answer_holds_nothing_up(
    client: httpx.AsyncClient, runners: Runners
) -> None:
    runners["text"].condition = runners["image"].condition = "mute"
    async with asyncio.timeout(1.0):
        report = (await client.get("/readyz")).json()
    assert report["status"] == "loading"
    assert report["runners"]["text"]["state"] == "loading"
    assert report["runners"]["speech"]["state"] == "ready"
    runners["text"].condition = "ready"
    assert (await client.get("/readyz")).json()["runners"]["text"]["state"] == "ready"
    runners["text"].condition = "mute"
    report = (await client.get("/readyz")).json()
    assert report["runners"]["text"]["state"] == "ready", "busy is not gone: it is as it last said"
