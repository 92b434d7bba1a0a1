"""The proxy of `deploy/nginx.conf`, for real, in front of the gateway with scripted runners."""

from __future__ import annotations

import socket
import ssl
import sys
import time
from collections.abc import Iterator
from urllib.parse import urlsplit

import httpx
import pytest

from tests.api.test_answers import events_of
from tests.e2e.process import Served, free_port
from tests.slow.proxy import in_front_of, needs_nginx

pytestmark = [
    pytest.mark.slow,
    needs_nginx,
    pytest.mark.filterwarnings("ignore:Implicitly cleaning up.*bentoml-client:ResourceWarning"),
]
HEAD = b"POST /text HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"


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
def proxy(service: Served, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    with in_front_of(service.url, tmp_path_factory.mktemp("nginx")) as client:
        yield client


def connect(proxy: httpx.Client, source: str = "127.0.0.1") -> ssl.SSLSocket:
    where = urlsplit(str(proxy.base_url))
    plain = socket.create_connection((where.hostname or "", where.port or 0), 60, (source, 0))
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context.wrap_socket(plain)


def test_answers_pass(proxy: httpx.Client) -> None:
    answer = proxy.post("/text", json={"prompt": "hello wörld"}, headers={"X-Request-Id": "mine"})
    assert (answer.json()["text"], answer.headers["X-Request-Id"]) == ("hello wörld", "mine")
    assert answer.headers["Strict-Transport-Security"]
    refused = proxy.post("/text", json={"prompt": "fail unavailable"})
    assert (refused.status_code, refused.headers["Retry-After"]) == (503, "3")
    assert refused.json()["error"]["code"] == "scripted"
    for path in ("/metrics", "/drain"):
        assert proxy.get(path).status_code == 404
        assert proxy.post(path).status_code == 404


def test_an_event_leaves_when_it_is_there(service: Served, proxy: httpx.Client) -> None:
    with proxy.stream("POST", "/image", json={"prompt": "hang", "stream": True}) as answer:
        first = next(answer.iter_text())
        assert events_of(first + "\n\n")[0][0] == "queued"
    limit = time.monotonic() + 10
    while not service.readyz()["runners"]["image"]["why"].endswith(" 0 alive"):
        assert time.monotonic() < limit, "a caller that left the proxy did not cancel its job"


def test_bodies_are_bounded_as_the_gateway_bounds_them(service: Served, proxy: httpx.Client) -> None:
    """Where files go in, 2 MiB reach the gateway, which finds no request in them."""
    headers = {"Content-Type": "application/json"}
    paths = httpx.get(f"{service.url}/docs.json").json()["paths"]
    bodies = {
        path: about["post"]["requestBody"]["content"] for path, about in paths.items() if "post" in about
    }
    assert any("multipart/form-data" in types for types in bodies.values())
    for path, types in bodies.items():
        takes_files = "multipart/form-data" in types
        for size, status in ((2 << 20, 400 if takes_files else 413), (14 << 20, 413)):
            answer = proxy.post(path, content=b" " * size, headers=headers)
            assert answer.status_code == status, path
            assert (answer.json()["error"]["code"] == "body_too_large") == (status == 413)


def test_a_body_of_two_lengths_is_refused(proxy: httpx.Client) -> None:
    with connect(proxy) as caller:
        lengths = b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n"
        caller.sendall(HEAD + lengths + b"2\r\n{}\r\n0\r\n\r\n")
        assert b" 400 " in caller.recv(100)


def test_slow_headers_and_slow_bodies_are_closed_and_hold_nobody_up(proxy: httpx.Client) -> None:
    slow = [connect(proxy, "127.0.0.2") for _ in range(100)]
    began = time.monotonic()
    for place, caller in enumerate(slow):
        caller.sendall(HEAD if place % 2 else HEAD + b"Content-Length: 100\r\n\r\n{")
    for number in range(20):
        assert proxy.post("/text", json={"prompt": f"number {number}"}).json()["text"] == f"number {number}"
    for caller in slow:
        try:
            caller.settimeout(max(0.1, began + 30 - time.monotonic()))
            while caller.recv(4096):
                pass
        except ConnectionError:
            pass  # reset: closed all the same
        finally:
            caller.close()
    assert time.monotonic() - began < 30  # 10 s on a machine with nothing else to do
