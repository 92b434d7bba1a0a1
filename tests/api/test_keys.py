"""Keys: who comes in, to what, how much of it, and what is written down about it."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import time

import httpx
import pytest
import sqlalchemy as sql
from prometheus_client import REGISTRY

from gateway.auth import FRESH_S
from gateway.books import spent_by
from gateway.keys import revoke_key
from gateway.ledger import records
from gateway.office import Office
from gateway.store import KEYS
from jobs import TextJob
from tests.api.caller import until
from tests.api.conftest import Make
from tests.api.fakes import FakeRunner
from tests.api.test_errors import error_of

Runners = dict[str, FakeRunner]
Headers = dict[str, str]


async def test_with_a_key_in_the_store_every_route_needs_one(client: httpx.AsyncClient, make: Make) -> None:
    assert (await client.post("/text", json={"prompt": "x"})).status_code == 200
    _, mine = make()
    await asyncio.sleep(FRESH_S)
    for method, path in [
        ("POST", "/text"),
        ("POST", "/image_stream"),
        ("POST", "/v1/chat/completions"),
        ("GET", "/v1/models"),
        ("GET", "/docs.json"),
        ("GET", "/metrics"),
        ("GET", "/healthz"),
        ("GET", "/"),
        ("GET", "/nothing"),
    ]:
        answer = await client.request(method, path, json={"prompt": "x"})
        assert error_of(answer, 401)["code"] == "invalid_api_key", path
        assert answer.headers["WWW-Authenticate"].startswith("Basic " if path == "/" else "Bearer"), path
    assert (await client.get("/livez")).status_code == 200
    assert (await client.get("/readyz")).status_code == 200
    assert (await client.post("/text", json={"prompt": "x"}, headers=mine)).status_code == 200


async def test_a_browser_opens_the_page_with_a_key_as_its_password(
    client: httpx.AsyncClient, make: Make
) -> None:
    page = await client.get("/")
    policy = page.headers["Content-Security-Policy"]
    script = page.text.partition("<script>")[2].partition("</script>")[0]
    assert base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() in policy
    assert "://" not in page.text, "the page must load nothing from elsewhere"
    _, mine = make()
    key = mine["Authorization"].removeprefix("Bearer ")
    await asyncio.sleep(FRESH_S)
    assert (await client.get("/", auth=("me", key))).status_code == 200
    for password in (key[:-1], "", "é"):
        assert (await client.get("/", auth=("me", password))).status_code == 401
    assert (await client.get("/v1/models", auth=("me", key))).status_code == 401


async def test_a_wrong_or_revoked_key_is_refused(
    client: httpx.AsyncClient, office: Office, make: Make
) -> None:
    key, mine = make()
    text = mine["Authorization"].removeprefix("Bearer ")
    bad = [
        f"Bearer {text[:-1]}",
        f"Bearer {text}x",
        f"Basic {text}",
        "Bearer",
        f"Bearer tt_{key.id}_",
        "tt",
        "",
    ]
    bad += [f"Bearer tt_{'0' * 12}_{text[-43:]}", "Bearer é".encode("latin-1").decode("latin-1")]
    for given in bad:
        answer = await client.get("/v1/models", headers=[(b"authorization", given.encode("latin-1"))])
        assert answer.status_code == 401, given
    assert (await client.get("/v1/models", headers=mine)).status_code == 200
    assert revoke_key(office.store, key.id)
    assert not revoke_key(office.store, key.id)
    await asyncio.sleep(FRESH_S)
    assert (await client.get("/v1/models", headers=mine)).status_code == 401


async def test_the_key_itself_is_not_kept(office: Office, make: Make) -> None:
    _, mine = make()
    with office.store.begin() as connection:
        row = str(connection.execute(sql.select(KEYS)).mappings().one())
    assert mine["Authorization"].rpartition("_")[2] not in row


async def test_a_keys_routes_and_models(client: httpx.AsyncClient, make: Make, runners: Runners) -> None:
    _, mine = make(routes=["/v1/*", "/image"], models=["fake"])
    chat = {"messages": [{"role": "user", "content": "x"}]}
    assert (await client.post("/v1/chat/completions", json=chat, headers=mine)).status_code == 200
    assert error_of(await client.post("/text", json={"prompt": "x"}, headers=mine), 403)["code"] == (
        "route_not_allowed"
    )
    refused = await client.post("/v1/images/generations", json={"prompt": "x"}, headers=mine)
    assert error_of(refused, 403)["code"] == "model_not_allowed"
    refused = await client.post("/image", json={"prompt": "x", "model": "other"}, headers=mine)
    assert error_of(refused, 403)["code"] == "model_not_allowed"
    assert not runners["image"].jobs


async def test_prefixes_are_cached_apart_for_each_key(
    client: httpx.AsyncClient, make: Make, runners: Runners
) -> None:
    for headers in (make()[1], make()[1]):
        for path, body in (
            ("/text", {"prompt": "x"}),
            ("/v1/completions", {"prompt": "x"}),
        ):
            assert (await client.post(path, json=body, headers=headers)).status_code == 200
    salts = [job.cache_salt for job in runners["text"].jobs if isinstance(job, TextJob)]
    assert salts[0] == salts[1] != salts[2] == salts[3]
    assert all(salts)


async def test_requests_a_minute(client: httpx.AsyncClient, make: Make) -> None:
    _, mine = make(requests_per_minute=3)
    _, others = make()
    answers = [await client.get("/v1/models", headers=mine) for _ in range(4)]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
    assert error_of(answers[-1], 429)["code"] == "rate_limit_exceeded"
    assert 1 <= int(answers[-1].headers["Retry-After"]) <= 60
    assert (await client.get("/v1/models", headers=others)).status_code == 200


async def test_requests_at_once(client: httpx.AsyncClient, make: Make, runners: Runners) -> None:
    _, mine = make(concurrency=2)
    hanging = [
        asyncio.create_task(client.post("/text", json={"prompt": "hang"}, headers=mine)) for _ in range(2)
    ]
    await until(lambda: len(runners["text"].live) == 2)
    assert (await client.post("/text", json={"prompt": "x"}, headers=mine)).status_code == 429
    for event in list(runners["text"].live.values()):
        event.set()
    assert [(await task).status_code for task in hanging] == [499, 499]
    assert (await client.post("/text", json={"prompt": "x"}, headers=mine)).status_code == 200


async def test_a_thousand_at_once_overshoot_a_quota_by_nothing(
    client: httpx.AsyncClient, office: Office, make: Make
) -> None:
    """Each may take 110 tokens (at most 16 + 94), so of 1,100 ten fit, however many ask; each takes 5."""
    key, mine = make(tokens=1100)
    body = {"prompt": "hang on", "max_tokens": 87}
    most = 0.0
    refused = 0

    async def ask() -> None:
        nonlocal refused
        answer = await client.post("/text", json={**body, "prompt": "hallo w"}, headers=mine)
        refused += answer.status_code == 429
        assert answer.status_code in (200, 429)

    async def look() -> None:
        nonlocal most
        while True:
            spent = await office.store.run(lambda connection: spent_by(connection, key))
            most = max(most, spent.get("tokens", 0))
            await asyncio.sleep(0.01)

    looking = asyncio.create_task(look())
    await asyncio.gather(*(ask() for _ in range(1000)))
    looking.cancel()
    assert 0 < most <= 1100
    assert refused > 0


async def test_a_quota_is_charged_and_settled(
    client: httpx.AsyncClient, office: Office, make: Make, runners: Runners
) -> None:
    key, mine = make(tokens=100, pixel_steps=128 * 128 * 5, period="month")

    async def spent() -> dict[str, float]:
        await office.books.close()
        return await office.store.run(lambda connection: spent_by(connection, key))

    hanging = asyncio.create_task(
        client.post("/text", json={"prompt": "hang", "max_tokens": 60}, headers=mine)
    )
    await until(lambda: runners["text"].live)
    assert (await spent())["tokens"] == 60 + 4 + 16
    refused = error_of(await client.post("/text", json={"prompt": "x", "max_tokens": 60}, headers=mine), 429)
    assert refused["code"] == "insufficient_quota"
    next(iter(runners["text"].live.values())).set()
    await hanging
    assert (await spent())["tokens"] == 0
    await client.post("/text", json={"prompt": "one two", "max_tokens": 60}, headers=mine)
    assert (await spent())["tokens"] == 3 + 2
    picture = {"prompt": "x", "width": 128, "height": 128}
    five = await client.post("/image", json={**picture, "num_inference_steps": 5}, headers=mine)
    assert five.status_code == 200
    answer = await client.post("/image", json={**picture, "num_inference_steps": 1}, headers=mine)
    assert error_of(answer, 429)["code"] == "insufficient_quota"
    assert int(answer.headers["Retry-After"]) > 0


async def test_a_request_is_a_record_without_its_words(
    client: httpx.AsyncClient, office: Office, make: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    key, mine = make()
    asked = {**mine, "X-Request-Id": "mine-1"}
    await client.post("/text", json={"prompt": "one s3cret"}, headers=asked)
    await client.post(
        "/v1/images/generations", json={"prompt": "s3cret", "n": 2, "size": "64x64"}, headers=mine
    )
    await client.post("/speech", json={"text": "s3cret"}, headers=mine)
    await client.post("/text", json={"prompt": "fail timeout s3cret"}, headers=mine)
    await client.get("/v1/models?word=s3cret", headers=mine)
    await office.ledger.close()
    with office.store.begin() as connection:
        found = list(records(connection, 0, time.time() + 1, key.id))
        assert not list(records(connection, 0, time.time() + 1, "another"))
    assert [row["route"] for row in found] == ["/text", "/v1/images/generations", "/speech", "/text"]
    text, picture, speech, failed = found
    assert (text["request_id"], text["model"], text["status"], text["outcome"]) == (
        "mine-1",
        "fake",
        200,
        "ok",
    )
    assert (text["prompt_tokens"], text["completion_tokens"]) == (3, 2)
    assert (text["queue_ms"], text["work_ms"]) == (1.25, 19.25)
    assert picture["pixel_steps"] == 2 * 64 * 64 * 20
    assert speech["audio_s"] == 1.5
    assert (failed["status"], failed["outcome"]) == (504, "error")
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    assert [line["path"] for line in lines][-1] == "/v1/models"
    assert lines[0]["key"] == key.id
    everything = json.dumps([found, lines])
    assert "s3cret" not in everything
    assert mine["Authorization"].rpartition("_")[2] not in everything


async def test_a_keys_jobs_are_its_own_in_queue_and_cache(
    client: httpx.AsyncClient, make: Make, runners: Runners
) -> None:
    key, mine = make()
    await client.post("/text", json={"prompt": "x"}, headers=mine)
    (job,) = runners["text"].jobs
    assert isinstance(job, TextJob)
    assert (job.account, job.cache_salt) == (key.id, key.id)


async def test_counters_tell_usage(client: httpx.AsyncClient, make: Make) -> None:
    key, mine = make()
    await client.post("/text", json={"prompt": "one two three"}, headers=mine)
    used = REGISTRY.get_sample_value("triptych_usage_total", {"key": key.id, "unit": "completion_tokens"})
    assert used == 3
    assert REGISTRY.get_sample_value("triptych_requests_total", {"route": "/text", "outcome": "ok"})
