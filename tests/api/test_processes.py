"""The same gateway before fake runners in processes of their own, as `bentoml serve` starts them.

Only this shows what passes through BentoML's client and server: cut connections, dead processes, crowds.
"""

from __future__ import annotations

import asyncio
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import bentoml
import httpx
import psutil
import pytest
from bentoml.exceptions import BentoMLException

from tests.api.fakes import PICTURE, SOUND
from tests.api.test_answers import events_of
from tests.e2e.process import Served, free_port, until

SOON_S = 1.0
"""What is promised; the end of the watched stream tells within milliseconds."""

pytestmark = pytest.mark.filterwarnings("ignore:Implicitly cleaning up.*bentoml-client:ResourceWarning")


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    port = free_port()
    target = "tests.api.fakes:FakeGateway"
    command = [sys.executable, "-m", "bentoml", "serve", target, "--host", "127.0.0.1", "--port", str(port)]
    served = Served([*command, "--timeout-keep-alive", "75"], port, tmp_path_factory.mktemp("fakes") / "log")
    try:
        served.wait_ready()
        yield served
    finally:
        served.stop()


@pytest.fixture(scope="module")
def runners(service: Served) -> dict[str, psutil.Process]:
    """By name, looked up before any of them is dead."""
    return {name: service.runner(name) for name in ("fake-image", "fake-speech")}


@pytest.fixture
def client(service: Served) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=service.url, timeout=30) as client:
        yield client


def why(client: httpx.Client, runner: str) -> str:
    return client.get("/readyz").json()["runners"][runner]["why"]


def test_bentoml_client(service: Served) -> None:
    client: Any
    with bentoml.SyncHTTPClient(service.url) as client:
        answer = client.text(prompt="hello wörld", seed=7, stop=["x"])
        assert (answer["text"], answer["seed"], answer["usage"]["total_tokens"]) == ("hello wörld", 7, 5)
        turns = [{"role": "user", "content": "hi"}]
        assert client.text(messages=turns)["text"] == "hi"
        assert client.image(prompt="x", loras=[{"name": "ink"}]) == PICTURE
        assert client.speech(text="four") == SOUND
        events = events_of("".join(client.text_stream(prompt="hello wörld")))
        assert [data["delta"] for _, data in events[:-1]] == ["hello", " ", "wörld", ""]
        assert events_of("".join(client.image_stream(prompt="x")))[-1][0] == "result"
        assert b"".join(client.speech_stream(text="four")) == SOUND
        with pytest.raises(BentoMLException, match=r"max_tokens. must be at most 131072"):
            client.text(prompt="x", max_tokens=200_000)
        with pytest.raises(BentoMLException, match="It is not_found"):
            list(client.text_stream(prompt="fail not_found"))


async def test_async_bentoml_client(service: Served) -> None:
    async with bentoml.AsyncHTTPClient(service.url) as client:
        answer: Any = await client.text(prompt="hello")
        assert answer["text"] == "hello"
        assert await client.image(prompt="x") == PICTURE
        assert await client.speech(text="four") == SOUND
        assert b"".join([piece async for piece in client.speech_stream(text="four")]) == SOUND


def test_errors_cross_the_processes(client: httpx.Client) -> None:
    answer = client.post("/image", json={"prompt": "fail unavailable", "stream": True})
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "3")
    assert answer.json()["error"]["message"] == "It is unavailable."
    with pytest.raises(httpx.RemoteProtocolError):
        client.post("/speech", json={"text": "late internal", "stream": True})
    assert (
        events_of(client.post("/text", json={"prompt": "late timeout", "stream": True}).text)[-1][0]
        == "error"
    )


def test_no_bytes_of_a_pickle_are_loaded(client: httpx.Client) -> None:
    headers = {"Content-Type": "application/vnd.bentoml+pickle"}
    assert client.post("/text", content=b"cos\nabort\n(tR.", headers=headers).status_code == 415


def test_metrics_page_and_documents(client: httpx.Client) -> None:
    client.post("/text", json={"prompt": "x"})
    metrics = client.get("/metrics").text
    assert 'triptych_requests_total{outcome="ok",route="/text"}' in metrics
    assert "<title>Triptych</title>" in client.get("/").text
    assert client.get("/docs.json").json()["openapi"] == "3.1.0"


@pytest.mark.parametrize("stream", [False, True])
def test_a_caller_that_leaves_cancels_its_job(service: Served, stream: bool) -> None:
    with httpx.Client(base_url=service.url) as client:
        with pytest.raises(httpx.ReadTimeout):
            client.post("/image", json={"prompt": "hang", "stream": stream}, timeout=0.5)
        until(lambda: why(client, "image").endswith(" 0 alive"), 2, "the cancel")


async def test_a_crowd_gets_its_own_answers(service: Served) -> None:
    limits = httpx.Limits(max_connections=32)
    async with httpx.AsyncClient(base_url=service.url, timeout=60, limits=limits) as client:

        async def ask(n: int) -> None:
            answer = await client.post("/text", json={"prompt": f"number {n}", "stream": n % 2 == 0})
            assert answer.status_code == 200
            if n % 2:
                assert answer.json()["text"] == f"number {n}"
            else:
                deltas = [data["delta"] for _, data in events_of(answer.text)[:-1]]
                assert "".join(deltas) == f"number {n}"

        for start in range(0, 320, 32):
            await asyncio.gather(*(ask(n) for n in range(start, start + 32)))


async def test_more_leave_than_there_are_connections(service: Served) -> None:
    async with httpx.AsyncClient(base_url=service.url) as client:

        async def leave(n: int) -> None:
            body = {"prompt": "hang", "stream": n % 2 == 0}
            with pytest.raises(httpx.ReadTimeout):
                await client.post("/text", json=body, timeout=httpx.Timeout(30, read=1))

        for _ in range(3):
            await asyncio.gather(*(leave(n) for n in range(40)))
        async with asyncio.timeout(5):
            while " 0 alive" not in (await client.get("/readyz")).json()["runners"]["text"]["why"]:
                await asyncio.sleep(0.05)
        assert (await client.post("/text", json={"prompt": "x"}, timeout=5)).status_code == 200


def test_the_log_holds_no_prompts(service: Served, client: httpx.Client) -> None:
    client.post("/text", json={"prompt": "s3cret", "seed": "s3cret"})
    client.post("/text", json={"prompt": "s3cret"})
    client.post("/text", content=b"s3cret", headers={"Content-Type": "application/json"})
    log = Path(service.log).read_text(encoding="utf-8")
    assert "/text" in log
    assert "s3cret" not in log


def test_a_runner_killed_under_a_stream_ends_it_with_an_error(
    runners: dict[str, psutil.Process], client: httpx.Client
) -> None:
    with client.stream("POST", "/image", json={"prompt": "hang", "stream": True}) as answer:
        pieces = answer.iter_text()
        body = next(pieces)
        started = time.monotonic()
        runners["fake-image"].kill()
        body += "".join(pieces)
    assert time.monotonic() - started < SOON_S
    name, data = events_of(body)[-1]
    assert (name, data["error"]["code"]) == ("error", "runner_unavailable")


async def test_a_killed_runner_is_told_at_once(service: Served, runners: dict[str, psutil.Process]) -> None:
    """That it comes back is up to the supervisor, and tested with the real runners."""
    async with httpx.AsyncClient(base_url=service.url, timeout=30) as client:

        async def ask(text: str) -> None:
            answer = await client.post("/speech", json={"text": text})
            assert answer.status_code == 503
            assert answer.json()["error"]["code"] == "runner_unavailable"
            assert int(answer.headers["Retry-After"]) >= 1

        waiting = asyncio.gather(*(ask("hang") for _ in range(16)))
        while "16 alive" not in (await client.get("/readyz")).json()["runners"]["speech"]["why"]:
            await asyncio.sleep(0.05)
        runners["fake-speech"].kill()
        async with asyncio.timeout(SOON_S):
            await waiting
        for _ in range(3):
            async with asyncio.timeout(SOON_S):
                await ask("four")
        assert (await client.post("/text", json={"prompt": "x"})).status_code == 200
        report = (await client.get("/readyz")).json()
        assert (report["status"], report["runners"]["speech"]["state"]) == ("down", "down")


@pytest.mark.parametrize(
    "lengths",
    [
        b"Content-Length: 15\r\nTransfer-Encoding: chunked",
        b"Transfer-Encoding: chunked\r\nContent-Length: 0",
        b"Content-Length: 15\r\nContent-Length: 16",
        b"Transfer-Encoding: chunked, identity",
        b"Transfer-Encoding: xchunked",
    ],
)
def test_a_body_whose_end_is_doubtful_is_refused(service: Served, lengths: bytes) -> None:
    """A proxy in front might see another end, and what follows it as somebody else's request."""
    host, _, port = service.url.removeprefix("http://").partition(":")
    start = b"POST /text HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    body = b'f\r\n{"prompt": "x"}\r\n0\r\n\r\n'
    with socket.create_connection((host, int(port)), timeout=10) as caller:
        caller.sendall(start + lengths + b"\r\n\r\n" + body + start + b"Content-Length: 2\r\n\r\n{}")
        answers = b""
        while piece := caller.recv(1 << 16):
            answers += piece
    assert answers.startswith(b"HTTP/1.1 400 ")
    assert answers.count(b"HTTP/1.1 ") == 1, "what followed was taken for a request"
