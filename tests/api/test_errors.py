"""Every refusal has one shape, the right status, and a request id."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.datastructures import Headers

from gateway.limits import read_body
from tests.api.fakes import FakeRunner
from tests.api.test_answers import events_of

Runners = dict[str, FakeRunner]
STATUS = {
    "invalid": 400,
    "not_found": 404,
    "overloaded": 429,
    "cancelled": 499,
    "internal": 500,
    "unavailable": 503,
    "timeout": 504,
}
JSON = {"Content-Type": "application/json"}
REQUESTS: dict[str, str] = {"/text": "prompt", "/image": "prompt", "/speech": "text"}


def error_of(answer: httpx.Response, status: int) -> dict[str, Any]:
    assert answer.status_code == status
    assert answer.headers["X-Request-Id"]
    assert answer.headers["Content-Type"] == "application/json"
    body = answer.json()
    assert list(body) == ["error"]
    assert list(body["error"]) == ["type", "message", "param", "code"]
    return body["error"]


@pytest.mark.parametrize("path", REQUESTS)
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("kind", STATUS)
async def test_each_kind_has_its_status(
    client: httpx.AsyncClient, path: str, stream: bool, kind: str
) -> None:
    answer = await client.post(path, json={REQUESTS[path]: f"fail {kind}", "stream": stream})
    error = error_of(answer, STATUS[kind])
    assert (error["message"], error["param"], error["code"]) == (f"It is {kind}.", "model", "scripted")
    assert (answer.headers.get("Retry-After") == "3") == (kind in ("overloaded", "unavailable"))


@pytest.mark.parametrize("path", REQUESTS)
async def test_an_error_after_some_events_is_still_a_status_when_nothing_was_sent(
    client: httpx.AsyncClient, path: str
) -> None:
    error_of(await client.post(path, json={REQUESTS[path]: "late internal"}), 500)
    error_of(await client.post(path, json={REQUESTS[path]: "quit"}), 500)


@pytest.mark.parametrize("path", ["/text", "/image"])
async def test_an_error_in_mid_stream_is_the_last_event(client: httpx.AsyncClient, path: str) -> None:
    answer = await client.post(path, json={"prompt": "late timeout", "stream": True})
    assert answer.status_code == 200
    name, data = events_of(answer.text)[-1]
    assert name == "error"
    assert data["error"]["type"] == "timeout_error"
    name, data = events_of((await client.post(path, json={"prompt": "quit", "stream": True})).text)[-1]
    assert (name, data["error"]["code"]) == ("error", "runner_broke_off")


@pytest.mark.parametrize("path", REQUESTS)
@pytest.mark.parametrize("body", [b"", b"[]", b"{", b'{"prompt": NaN}', b"\xff", b'{"a":' * 10_000])
async def test_bad_json(client: httpx.AsyncClient, path: str, body: bytes) -> None:
    error_of(await client.post(path, content=body, headers=JSON), 400)


@pytest.mark.parametrize("path", REQUESTS)
async def test_bad_fields_reach_no_runner_and_no_log(
    client: httpx.AsyncClient, runners: Runners, caplog: pytest.LogCaptureFixture, path: str
) -> None:
    caplog.set_level(logging.DEBUG)
    name = REQUESTS[path]
    error = error_of(await client.post(path, json={name: "s3cret", "seed": "s3cret"}), 400)
    assert (error["param"], error["code"]) == ("seed", "wrong_type")
    error_of(await client.post(path, json={name: "s3cret", "image_url": "http://10.0.0.1/s3cret"}), 400)
    error_of(await client.post(path, json={name: ["s3cret"]}), 400)
    assert not runners["text"].jobs
    error_of(await client.post(path, json={name: "fail internal s3cret"}), 500)
    error_of(await client.post(path, json={name: "bug s3cret"}), 500)
    assert "s3cret" not in caplog.text


@pytest.mark.parametrize(
    "headers",
    [
        {"Content-Type": "application/vnd.bentoml+pickle"},
        {"Content-Type": "Application/Vnd.BentoML+Pickle; charset=utf-8"},
        {"Content-Type": "application/json, application/vnd.bentoml+pickle"},
        {"Content-Type": "multipart/form-data; boundary=x"},
        {"Content-Type": "application/x-www-form-urlencoded"},
        {"Content-Type": "text/plain"},
        {"Content-Type": "application/json; charset=utf-16"},
        {"Content-Type": ""},
        {"Content-Type": "application/json", "Content-Encoding": "gzip"},
        {},
    ],
)
@pytest.mark.parametrize("path", [*REQUESTS, "/text/", "/text%0A", "/elsewhere"])
async def test_only_plain_json_is_read(
    client: httpx.AsyncClient, runners: Runners, path: str, headers: dict[str, str]
) -> None:
    answer = await client.post(path, content=b'{"prompt": "x"}', headers=headers)
    is_broken_form = path in ("/image", "/speech") and headers.get("Content-Type", "").startswith("multipart")
    error_of(answer, 404 if path == "/text%0A" else 400 if is_broken_form else 415)
    assert not runners["text"].jobs


@pytest.mark.parametrize("kind", ["application/json", "APPLICATION/JSON; charset=UTF-8"])
async def test_json_is_json_in_any_spelling(client: httpx.AsyncClient, kind: str) -> None:
    answer = await client.post("/text", content=b'{"prompt": "x"}', headers={"Content-Type": kind})
    assert answer.status_code == 200


async def test_unknown_routes_and_methods(client: httpx.AsyncClient) -> None:
    assert error_of(await client.get("/nothing"), 404)["code"] == "unknown_route"
    assert error_of(await client.post("/nothing", json={}), 404)["code"] == "unknown_route"
    for path in (*REQUESTS, "/text_stream"):
        for method in ("GET", "PUT", "DELETE", "PATCH"):
            answer = await client.request(method, path, headers=JSON, content=b"{}")
            assert error_of(answer, 405)["code"] == "method_not_allowed"
            assert answer.headers["Allow"] == "POST"


async def test_a_body_over_its_limit(client: httpx.AsyncClient, runners: Runners) -> None:
    plain = b'{"prompt": "' + b"x" * (1 << 20) + b'"}'
    error_of(await client.post("/text", content=plain, headers=JSON), 413)
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while sent < 1 << 30:
            sent += 1 << 16
            yield b" " * (1 << 16)

    error = error_of(await client.post("/text", content=endless(), headers=JSON), 413)
    assert "1048576" in error["message"]
    assert sent <= (1 << 20) + (1 << 17)
    lying = {**JSON, "Content-Length": "9" * 5000}
    error_of(await client.post("/text", content=b"{}", headers=lying), 413)
    assert not runners["text"].jobs


async def test_a_body_that_comes_too_slowly(client: httpx.AsyncClient) -> None:
    async def slow() -> AsyncIterator[bytes]:
        yield b'{"prompt": '
        await asyncio.sleep(60)

    async with asyncio.timeout(5):
        answer = await client.post("/text", content=slow(), headers=JSON)
    assert error_of(answer, 408)["code"] == "body_timeout"
    assert answer.headers["Connection"] == "close"


async def test_a_body_that_came_while_the_process_slept_is_read() -> None:
    """The timer and the body are seen in one turn of the loop, the timer first."""
    arrived: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    reading = asyncio.create_task(read_body(Headers(), arrived.get, 100, timeout_s=0.01))
    await asyncio.sleep(0)
    time.sleep(0.05)  # noqa: ASYNC251 - the whole process gets no processor
    asyncio.get_running_loop().call_soon(
        arrived.put_nowait, {"type": "http.request", "body": b"{}", "more_body": False}
    )
    assert await reading == b"{}"


@pytest.mark.parametrize("id", ["", "a b", "ä", "x" * 129, "a\tb", "a/b", "a;b"])
async def test_a_bad_request_id_is_refused(client: httpx.AsyncClient, id: str) -> None:
    answer = await client.post(
        "/text", json={"prompt": "x"}, headers=httpx.Headers([(b"X-Request-Id", id.encode())])
    )
    assert error_of(answer, 400)["code"] == "bad_request_id"
    assert answer.headers["X-Request-Id"] != id


async def test_every_answer_has_the_request_id(client: httpx.AsyncClient) -> None:
    mine = {"X-Request-Id": "A.b_c:d-9" + "x" * 119}
    for path in ("/livez", "/readyz", "/docs.json", "/schema.json", "/", "/nothing", "/text"):
        answer = await client.get(path, headers=mine)
        assert answer.headers["X-Request-Id"] == mine["X-Request-Id"]
        fresh = await client.get(path)
        assert len(fresh.headers["X-Request-Id"]) == 32
    for body in ({"prompt": "x"}, {"prompt": "x", "stream": True}, {"prompt": "fail internal"}, {}):
        answer = await client.post("/text", json=body, headers=mine)
        assert answer.headers["X-Request-Id"] == mine["X-Request-Id"]


def test_no_timer_holds_on_to_a_request(built: Starlette) -> None:
    layers: list[Any] = built.user_middleware
    names = [layer.cls.__name__ for layer in layers]
    assert "Edge" in names
    assert "TimeoutMiddleware" not in names


async def test_a_bug_below_is_an_answer_without_its_words(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", "/nowhere")
    error = error_of(await client.get("/metrics"), 500)
    assert error["type"] == "internal_error"
    assert "nowhere" not in json.dumps(error)
