"""Requests that mean harm, by the document: each field of every route is tried."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from gateway.limits import fresh_id
from tests.api.fakes import PICTURE, FakeRunner

Schema = dict[str, Any]
PROSE = frozenset({"prompt", "negative_prompt", "text", "input", "system", "user", "stop", "content"})
"""Fields whose words mean nothing to the service: a URL in them is only read by a model."""
URLS = ("http://127.0.0.1:9/x", "file:///etc/passwd", "https://example.org/lora.safetensors")
MIMES = "data:image/png;base64," + base64.b64encode(PICTURE).decode()
FILES = frozenset({"init_image", "mask_image", "voice_file", "image", "mask"})


def schema_of(document: Schema, reference: Schema) -> Schema:
    return document["components"]["schemas"][reference["$ref"].rpartition("/")[2]]


def examples_of(schema: Schema) -> dict[str, Any]:
    """A request of every field that has an example."""
    return {name: each["examples"][0] for name, each in schema["properties"].items() if each.get("examples")}


def posts(document: Schema) -> Iterator[tuple[str, Schema]]:
    """Each route that takes a body, and the schema of it."""
    for path, methods in document["paths"].items():
        body = methods.get("post", {}).get("requestBody")
        if body is not None:
            yield path, schema_of(document, body["content"]["application/json"]["schema"])


def takes_text(field: Schema) -> bool:
    choices = field.get("anyOf", [field])
    return any(each.get("type") == "string" and "enum" not in each for each in choices)


@pytest.fixture
async def document(client: httpx.AsyncClient) -> Schema:
    return (await client.get("/docs.json")).json()


async def test_a_url_in_any_field_is_refused(
    client: httpx.AsyncClient, runners: dict[str, FakeRunner], document: Schema
) -> None:
    tried: set[str] = set()
    for path, schema in posts(document):
        for name, field in schema["properties"].items():
            if name in PROSE or not takes_text(field):
                continue
            tried.add(name)
            for url in URLS if name not in FILES else (*URLS, MIMES):
                await refused(client, path, {**examples_of(schema), name: url}, name)
    assert {"model", "voice", "language", "init_image", "mask", "voice_file", "keep_alive"} <= tried
    for path in ("/image", "/v1/images/generations"):
        for url in URLS:
            await refused(client, path, {"prompt": "x", "loras": [{"name": url}]}, "loras.0.name")
    part = {"type": "image_url", "image_url": {"url": URLS[0]}}
    turns = [{"role": "user", "content": [part]}]
    assert (await client.post("/v1/chat/completions", json={"messages": turns})).status_code == 400
    assert not any(runner.jobs for runner in runners.values())


async def refused(client: httpx.AsyncClient, path: str, body: dict[str, Any], field: str) -> None:
    answer = await client.post(path, json=body)
    assert answer.status_code == 400, (path, field, answer.text)
    told = answer.json()["error"]
    assert field in (told if isinstance(told, str) else (told["param"] or "")), (path, field, told)


@pytest.mark.parametrize("parts", [65, 10_000])
async def test_a_form_of_very_many_parts_is_refused(client: httpx.AsyncClient, parts: int) -> None:
    part = b'--b\r\nContent-Disposition: form-data; name="p%d"\r\n\r\nx\r\n'
    body = b"".join(part % number for number in range(parts)) + b"--b--\r\n"
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    assert (await client.post("/image", content=body, headers=headers)).status_code == 400


@pytest.mark.parametrize("header", [b"A" * 200_000, b"a: b\r\n" * 20_000])
async def test_a_part_with_a_header_without_end_is_refused(client: httpx.AsyncClient, header: bytes) -> None:
    body = b"--b\r\n" + header + b'\r\nContent-Disposition: form-data; name="prompt"\r\n\r\nx\r\n--b--\r\n'
    headers = {"Content-Type": "multipart/form-data; boundary=b", "X-Request-Id": fresh_id()}
    assert (await client.post("/image", content=body, headers=headers)).status_code == 400


async def test_numbers_out_of_every_bound_are_refused_before_any_work(
    client: httpx.AsyncClient, runners: dict[str, FakeRunner], document: Schema
) -> None:
    """For each number of each route: one more than its most, and one that no machine has memory for."""
    tried = 0
    for path, schema in posts(document):
        for name, field in schema["properties"].items():
            bounds = next((each for each in field.get("anyOf", [field]) if "maximum" in each), None)
            if bounds is None:
                continue
            tried += 1
            step = bounds.get("multipleOf", 1)
            for number in (bounds["maximum"] + step, 10**15 * step):
                answer = await client.post(path, json={**examples_of(schema), name: number})
                assert answer.status_code == 400, (path, name, answer.text)
                assert name in answer.text, (path, name, answer.text)
                assert str(bounds["maximum"]) in answer.text, (path, name, answer.text)
    assert tried > 30
    assert not any(runner.jobs for runner in runners.values())
