"""Work that goes on without its caller: jobs, idempotent requests, vanished clients."""

from __future__ import annotations

import asyncio
from typing import Any, Literal

import httpx
import pytest
import sqlalchemy as sql
from pydantic import BaseModel
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send

from gateway.doors import Doors
from gateway.edge import Edge
from gateway.health import Readiness
from gateway.office import Office
from gateway.options import GatewayOptions
from gateway.store import USAGE
from tests.api.caller import Caller, until
from tests.api.conftest import Make
from tests.api.fakes import PICTURE, FakeRunner
from tests.api.test_answers import events_of
from tests.api.test_errors import error_of

Runners = dict[str, FakeRunner]
LATER = {"Prefer": "respond-async"}


async def ended(client: httpx.AsyncClient, id: str, **headers: str) -> dict[str, Any]:
    async with asyncio.timeout(5):
        while True:
            told = (await client.get(f"/jobs/{id}", headers=headers)).json()
            if told["status"] not in ("queued", "running"):
                return told
            await asyncio.sleep(0.01)


async def test_a_job_has_a_state_and_then_a_result(client: httpx.AsyncClient) -> None:
    mine = {**LATER, "X-Request-Id": "mine-1"}
    answer = await client.post("/image", json={"prompt": "x", "seed": 7}, headers=mine)
    assert answer.status_code == 202
    assert answer.headers["Location"] == "/jobs/mine-1"
    assert answer.headers["Preference-Applied"] == "respond-async"
    told = await ended(client, "mine-1")
    assert (told["status"], told["route"]) == ("done", "/image")
    assert told["result"] == {
        "status": 200,
        "media_type": "image/png",
        "bytes": len(PICTURE),
        "url": "/jobs/mine-1/result",
    }
    result = await client.get(told["result"]["url"])
    assert result.content == PICTURE
    assert (result.headers["X-Seed"], result.headers["Content-Type"]) == ("7", "image/png")


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/text", {"prompt": "x"}),
        ("/text", {"prompt": "x", "stream": True}),
        ("/speech", {"text": "x"}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}]}),
        ("/v1/images/generations", {"prompt": "x"}),
    ],
)
async def test_any_endpoint_can_be_a_job(client: httpx.AsyncClient, path: str, body: dict[str, Any]) -> None:
    answer = await client.post(path, json={**body, "seed": 3} if "v1" not in path else body, headers=LATER)
    assert answer.status_code == 202
    id = answer.json()["id"]
    assert (await ended(client, id))["status"] == "done"
    result = await client.get(f"/jobs/{id}/result")
    assert result.status_code == 200
    assert result.content


async def test_a_job_that_waits_tells_its_place_and_can_be_cancelled(
    client: httpx.AsyncClient, runners: Runners
) -> None:
    answer = await client.post("/image", json={"prompt": "hang"}, headers=LATER)
    told = answer.json()
    assert (told["status"], told["position"], told["predicted_wait_s"]) == ("queued", 2, 2.5)
    unfinished = await client.get(f"/jobs/{told['id']}/result")
    assert unfinished.status_code == 202
    gone = await client.delete(f"/jobs/{told['id']}")
    assert gone.json()["status"] == "cancelled"
    await until(lambda: not runners["image"].live)
    assert (await client.get(f"/jobs/{told['id']}")).json()["status"] == "cancelled"
    assert (await client.delete(f"/jobs/{told['id']}")).json()["status"] == "deleted"
    assert error_of(await client.get(f"/jobs/{told['id']}"), 404)["code"] == "job_not_found"


async def test_a_job_that_is_refused_at_once_is_no_job(client: httpx.AsyncClient) -> None:
    error_of(await client.post("/text", json={"prompt": "fail overloaded"}, headers=LATER), 429)
    error_of(await client.post("/text", json={"prompt": 3}, headers=LATER), 400)
    mine = {**LATER, "X-Request-Id": "again"}
    error_of(await client.post("/text", json={"prompt": "fail overloaded"}, headers=mine), 429)
    assert (await client.post("/text", json={"prompt": "fail overloaded"}, headers=mine)).status_code == 429


async def test_one_id_is_one_job(client: httpx.AsyncClient, runners: Runners) -> None:
    mine = {**LATER, "X-Request-Id": "one"}
    for _ in range(3):
        assert (await client.post("/text", json={"prompt": "x"}, headers=mine)).status_code == 202
    await ended(client, "one")
    assert len(runners["text"].jobs) == 1
    other = await client.post("/text", json={"prompt": "y"}, headers=mine)
    assert error_of(other, 409)["code"] == "id_in_use"


async def test_a_jobs_events(client: httpx.AsyncClient, runners: Runners) -> None:
    id = (await client.post("/image", json={"prompt": "hang"}, headers=LATER)).json()["id"]
    reading = asyncio.create_task(client.get(f"/jobs/{id}/events"))
    await until(lambda: runners["image"].live)
    next(iter(runners["image"].live.values())).set()
    events = events_of((await reading).text)
    assert events[0][0] == "queued"
    assert events[-1][0] == "failed"
    assert events[-1][1]["result"]["status"] == 499


async def test_another_keys_job_is_not_there(client: httpx.AsyncClient, make: Make) -> None:
    _, mine = make()
    _, theirs = make()
    id = (await client.post("/text", json={"prompt": "x"}, headers={**LATER, **mine})).json()["id"]
    await ended(client, id, **mine)
    for method, path in [("GET", ""), ("GET", "/result"), ("GET", "/events"), ("DELETE", "")]:
        error_of(await client.request(method, f"/jobs/{id}{path}", headers=theirs), 404)
    assert (await client.get(f"/jobs/{id}/result", headers=mine)).status_code == 200


async def test_a_job_counts_among_a_keys_requests_at_once(client: httpx.AsyncClient, make: Make) -> None:
    _, mine = make(concurrency=2)
    id = (await client.post("/text", json={"prompt": "hang"}, headers={**LATER, **mine})).json()["id"]
    second = await client.post("/text", json={"prompt": "hang"}, headers={**LATER, **mine})
    assert second.status_code == 202
    error_of(await client.get(f"/jobs/{id}", headers=mine), 429)


async def test_a_job_is_in_the_usage(client: httpx.AsyncClient, office: Office) -> None:
    id = (await client.post("/text", json={"prompt": "one two"}, headers=LATER)).json()["id"]
    await ended(client, id)
    await office.ledger.close()
    with office.store.begin() as connection:
        (row,) = connection.execute(sql.select(USAGE)).mappings().all()
    assert (row["request_id"], row["completion_tokens"], row["outcome"]) == (id, 2, "ok")


async def test_fifty_duplicates_run_once(client: httpx.AsyncClient, runners: Runners) -> None:
    once = {"Idempotency-Key": "abc"}
    answers = await asyncio.gather(
        *(client.post("/text", json={"prompt": "one two"}, headers=once) for _ in range(50))
    )
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.text for answer in answers}) == 1
    assert len({answer.headers["X-Request-Id"] for answer in answers}) == 50
    later = await client.post("/text", json={"prompt": "one two"}, headers=once)
    assert (later.text, later.headers["Idempotent-Replayed"]) == (answers[0].text, "true")
    assert len(runners["text"].jobs) == 1
    other = await client.post("/text", json={"prompt": "one"}, headers=once)
    assert error_of(other, 409)["code"] == "idempotency_key_reused"
    assert (await client.post("/text", json={"prompt": "one"})).status_code == 200


async def test_duplicates_with_another_body_are_refused_while_it_runs(
    client: httpx.AsyncClient, runners: Runners
) -> None:
    once = {"Idempotency-Key": "abc"}
    first = asyncio.create_task(client.post("/text", json={"prompt": "hang"}, headers=once))
    await until(lambda: runners["text"].live)
    error_of(await client.post("/text", json={"prompt": "hang", "seed": 1}, headers=once), 409)
    next(iter(runners["text"].live.values())).set()
    assert (await first).status_code == 499


async def test_a_failure_is_not_kept(client: httpx.AsyncClient, runners: Runners) -> None:
    once = {"Idempotency-Key": "abc"}
    for _ in range(2):
        error_of(await client.post("/text", json={"prompt": "fail unavailable"}, headers=once), 503)
    assert len(runners["text"].jobs) == 2


async def test_an_idempotent_request_outlives_its_caller(
    app: Starlette, client: httpx.AsyncClient, runners: Runners
) -> None:
    body = {"prompt": "hang"}
    caller = Caller(app, "/text", body, **{"Idempotency-Key": "abc"})
    await until(lambda: runners["text"].live)
    caller.hang_up()
    await caller.task
    again = asyncio.create_task(client.post("/text", json=body, headers={"Idempotency-Key": "abc"}))
    await asyncio.sleep(0)
    assert not runners["text"].cancelled
    next(iter(runners["text"].live.values())).set()
    assert (await again).status_code == 499
    assert len(runners["text"].jobs) == 1


@pytest.mark.parametrize("key", ["", "a b", "ä", "x" * 256])
async def test_a_bad_idempotency_key(client: httpx.AsyncClient, key: str) -> None:
    headers = httpx.Headers([(b"Idempotency-Key", key.encode())])
    error_of(await client.post("/text", json={"prompt": "x"}, headers=headers), 400)


class _Anything(BaseModel):
    """A body without fields."""


@pytest.mark.parametrize("vanished", ["cancel", "finish"])
async def test_a_vanished_callers_work_ends_or_goes_on(vanished: Literal["cancel", "finish"]) -> None:
    options = GatewayOptions(vanished=vanished)
    office = Office()
    office.open(options)
    begun, may_end, ended = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def endpoint(scope: Scope, receive: Receive, send: Send) -> None:
        begun.set()
        await may_end.wait()
        await PlainTextResponse("done")(scope, receive, send)
        ended.set()

    edge = Edge(endpoint, {"/text": _Anything}, dict, Readiness(), Doors(), office, options)
    caller = Caller(edge, "/text", {})
    await begun.wait()
    caller.hang_up()
    await caller.task
    may_end.set()
    await asyncio.sleep(0.05)
    assert ended.is_set() == (vanished == "finish")
    await office.close()
