"""Bodies with files: multipart or base64, a bound of their own, and the same checks as any JSON."""

from __future__ import annotations

import base64
import io
import json
import time
from collections.abc import AsyncIterator
from typing import Any, ClassVar

import httpx
import pytest
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from gateway.doors import Doors
from gateway.edge import Edge
from gateway.health import Readiness
from gateway.office import Office
from gateway.options import GatewayOptions
from tests.api.test_errors import error_of

FORM = {"Content-Type": "multipart/form-data; boundary=b"}


class _Words(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    name: str = "none"


class _Files(_Words):
    file_fields: ClassVar[frozenset[str]] = frozenset({"picture"})

    picture: str | None = None
    count: int = Field(1, ge=1, le=4)
    loud: bool = False
    tags: list[str] = []


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    await Response(await Request(scope, receive).body())(scope, receive, send)


@pytest.fixture
async def caller() -> AsyncIterator[httpx.AsyncClient]:
    options = GatewayOptions(max_body_bytes=1000, max_media_body_bytes=100_000)
    office = Office()
    office.open(options)
    edge = Edge(echo, {"/words": _Words, "/files": _Files}, dict, Readiness(), Doors(), office, options)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(edge), base_url="http://gateway") as client:
        yield client


async def test_parts_become_the_fields_they_are_named_after(caller: httpx.AsyncClient) -> None:
    picture = bytes(range(256)) * 200
    fields = {"name": "12", "count": "3", "loud": "true", "tags": '["a", "b"]'}
    answer = await caller.post("/files", data=fields, files={"picture": ("p.png", picture, "image/png")})
    assert answer.json() == {
        "name": "12",
        "count": 3,
        "loud": True,
        "tags": ["a", "b"],
        "picture": base64.b64encode(picture).decode(),
    }


@pytest.mark.parametrize(
    ("fields", "files", "param"),
    [
        ({"count": "9"}, ["picture"], "count"),
        ({"count": "many"}, ["picture"], "count"),
        ({"count": "NaN"}, ["picture"], "count"),
        ({"tags": "[" * 5000}, ["picture"], "tags"),
        ({"other": "1"}, ["picture"], "other"),
        ({"picture": "", "name": "x"}, ["picture"], "picture"),
        ({}, ["name"], "name"),
    ],
)
async def test_a_bad_part_is_refused_by_its_name(
    caller: httpx.AsyncClient, fields: dict[str, str], files: list[str], param: str
) -> None:
    answer = await caller.post("/files", data=fields, files={name: io.BytesIO(b"x") for name in files})
    assert error_of(answer, 400)["param"] == param


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b"--b\r\nContent-Disposition: form-data\r\n\r\nx\r\n--b--\r\n",
        b'--b\r\nContent-Disposition: form-data; name="picture"; filename="p"\r\n\r\nx\r\n' * 2
        + b"--b--\r\n",
        b'--b\r\nContent-Disposition: form-data; name="a"\r\n\r\nx\r\n' * 90 + b"--b--\r\n",
        b"--b\r\n" + b"X: y\r\n" * 10_000,
        b"\r\n" * 50_000,
    ],
    ids=["empty", "json", "nameless", "two files", "90 parts", "10,000 headers", "new lines"],
)
async def test_a_body_that_is_no_form_is_refused_at_once(caller: httpx.AsyncClient, body: bytes) -> None:
    started = time.process_time()
    error = error_of(await caller.post("/files", content=body, headers=FORM), 400)
    assert error["code"] == "invalid_multipart"
    assert time.process_time() - started < 1


async def test_each_route_has_its_own_bound_and_forms_only_where_files_go_in(
    caller: httpx.AsyncClient,
) -> None:
    async def post(path: str, size: int) -> httpx.Response:
        body: dict[str, Any] = {"name": "x" * size}
        return await caller.post(path, content=json.dumps(body), headers={"Content-Type": "application/json"})

    assert (await post("/words", 900)).status_code == 200
    assert "1000 bytes" in error_of(await post("/words", 1000), 413)["message"]
    assert (await post("/files", 90_000)).status_code == 200
    assert "100000 bytes" in error_of(await post("/files", 100_000), 413)["message"]
    answer = await caller.post("/files", files={"picture": b"x" * 100_000})
    assert "100000 bytes" in error_of(answer, 413)["message"]
    error_of(await caller.post("/words", files={"picture": b"x"}), 415)
