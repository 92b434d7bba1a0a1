"""The document says what the types say: bounds, defaults, every answer, the error shape."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from gateway.schemas import MAX_SEED, ImageRequest, SpeechRequest
from gateway.text_schemas import TextRequest


@pytest.fixture
async def document(client: httpx.AsyncClient) -> dict[str, Any]:
    answer = await client.get("/docs.json")
    assert answer.status_code == 200
    return answer.json()


def references(node: Any) -> set[str]:
    if isinstance(node, dict):
        own = {node["$ref"]} if isinstance(node.get("$ref"), str) else set[str]()
        return own.union(*(references(value) for value in node.values()))
    return set[str]().union(*(references(value) for value in node)) if isinstance(node, list) else set()


def test_each_endpoint_tells_its_answers_and_errors(document: dict[str, Any]) -> None:
    names = {"text", "text_stream", "image", "image_stream", "speech", "speech_stream"}
    assert {f"/{name}" for name in names} <= set(document["paths"])
    for name in names:
        post = document["paths"][f"/{name}"]["post"]
        assert post["summary"]
        errors = set(post["responses"]) - {"200"}
        assert errors == {"400", "404", "408", "413", "415", "429", "500", "503", "504"}
        for status in errors:
            content = post["responses"][status]["content"]["application/json"]
            assert content["schema"]["$ref"].endswith("/ErrorBody")
        assert "Retry-After" in post["responses"]["503"]["headers"]
        assert "X-Request-Id" in post["responses"]["200"]["headers"]


def test_each_field_has_words_and_bounds(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]
    for name in ("TextRequest", "ImageRequest", "SpeechRequest", "ChatMessage", "LoraSpec"):
        assert schemas[name]["additionalProperties"] is False
        for field in schemas[name]["properties"].values():
            assert field["description"]
    text = schemas["TextRequest"]["properties"]
    assert (text["n"]["minimum"], text["n"]["maximum"]) == (1, 4)
    assert text["max_tokens"]["default"] == 128
    assert text["top_p"]["exclusiveMinimum"] == 0
    assert text["seed"]["anyOf"][0]["maximum"] == MAX_SEED
    image = schemas["ImageRequest"]["properties"]
    assert image["width"]["anyOf"][0] == {"type": "integer", "minimum": 64, "maximum": 2048, "multipleOf": 8}
    assert image["scheduler"]["enum"] == ["ddim", "euler", "euler_ancestral", "dpmpp_2m", "lcm"]
    assert schemas["SpeechRequest"]["properties"]["text"]["maxLength"] == 4096


def test_every_reference_leads_somewhere(document: dict[str, Any]) -> None:
    found = references(document)
    assert found
    for reference in found:
        node = document
        for part in reference.removeprefix("#/").split("/"):
            node = node[part]


def test_bentoml_can_describe_the_requests() -> None:
    """It does so when a Bento is built, and fails on keywords of JSON Schema that it does not know."""
    for request in (TextRequest, ImageRequest, SpeechRequest):
        assert request.__name__ in request.openapi_components(request.__name__)
