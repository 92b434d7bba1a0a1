"""/embed and /classify, and other people's doors to them, with a fake runner."""

from __future__ import annotations

import base64
import struct
from typing import Any

import httpx
import ollama
import pytest
from openai import AsyncOpenAI

from jobs import ClassifyJob, EmbedJob
from tests.api.conftest import Make
from tests.api.fakes import FakeRunner
from tests.api.test_jobs import ended
from tests.api.test_ollama import llama
from tests.api.test_openai import ai

__all__ = ["ai", "llama"]

Runners = dict[str, FakeRunner]


def last_job(runners: Runners) -> Any:
    return runners["text"].jobs[-1]


async def test_embed(client: httpx.AsyncClient, runners: Runners) -> None:
    body = {"texts": ["a b", "ccc"], "prompt_name": "query", "truncate": True, "keep_alive_s": 60}
    answer = await client.post("/embed", json=body, headers={"X-Request-Id": "mine"})
    assert answer.status_code == 200
    told = answer.json()
    assert told["vectors"] == [[3, 0.5, -0.25], [3, 0.5, -0.25]]
    assert told["usage"] == {"prompt_tokens": 3, "total_tokens": 3}
    assert (told["id"], told["model"]) == ("mine", "fake-embed")
    assert 0 <= told["timings"]["queue_ms"] <= told["timings"]["total_ms"]
    job = last_job(runners)
    assert isinstance(job, EmbedJob)
    assert (job.texts, job.prompt_name, job.truncate, job.keep_alive_s) == (("a b", "ccc"), "query", True, 60)


async def test_classify(client: httpx.AsyncClient, runners: Runners) -> None:
    body = {"texts": ["a"], "labels": ["x", "y"], "multi_label": True, "top_k": 1, "model": "fake-classify"}
    told = (await client.post("/classify", json=body)).json()
    assert told["results"] == [{"labels": [{"label": "a", "score": 0.75}]}]
    assert told["usage"] == {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}
    job = last_job(runners)
    assert isinstance(job, ClassifyJob)
    assert (job.labels, job.multi_label, job.top_k, job.model) == (("x", "y"), True, 1, "fake-classify")


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/embed", {}, "texts"),
        ("/embed", {"texts": []}, "texts"),
        ("/embed", {"texts": [""]}, "texts.0"),
        ("/embed", {"texts": ["a"] * 257}, "texts"),
        ("/embed", {"texts": ["a" * 32769]}, "texts.0"),
        ("/embed", {"texts": "a"}, "texts"),
        ("/embed", {"texts": ["a"], "temperature": 0}, "temperature"),
        ("/classify", {"texts": ["a"], "top_k": 0}, "top_k"),
        ("/classify", {"texts": ["a"], "labels": ["x"] * 33}, "labels"),
        ("/classify", {"texts": ["a"] * 129, "labels": ["x", "y"]}, "labels"),
        ("/v1/embeddings", {"input": [[1, 2]], "model": "a"}, "input.0"),
        ("/v1/embeddings", {"input": "a", "model": "a", "dimensions": 3}, "dimensions"),
        ("/v1/embeddings", {"input": "a", "encoding_format": "int8"}, "encoding_format"),
    ],
)
async def test_bad_fields_never_reach_the_runner(
    client: httpx.AsyncClient, runners: Runners, path: str, body: dict[str, Any], param: str
) -> None:
    answer = await client.post(path, json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param
    assert not runners["text"].jobs


async def test_null_is_left_out(client: httpx.AsyncClient) -> None:
    nothing = {"model": None, "keep_alive_s": None}
    languages = {"source_language": None, "target_language": None, "top_k": None}
    for path, more in (("/embed", {"prompt_name": None}), ("/classify", languages)):
        assert (await client.post(path, json={"texts": ["a"], **nothing, **more})).status_code == 200


async def test_failures_are_the_runners(client: httpx.AsyncClient) -> None:
    for path in ("/embed", "/classify"):
        answer = await client.post(path, json={"texts": ["fail overloaded"]})
        assert (answer.status_code, answer.headers["Retry-After"]) == (429, "3")
    assert (
        await client.post("/api/embed", json={"input": "fail invalid", "model": "fake-embed"})
    ).json() == {"error": "It is invalid."}


@pytest.mark.parametrize("form", ["float", "base64", None])
async def test_openai_embeddings(ai: AsyncOpenAI, runners: Runners, form: Any) -> None:
    more = {} if form is None else {"encoding_format": form}
    told = await ai.embeddings.create(
        model="text-embedding-3-small", input=["a b", "c"], extra_body={"prompt_name": "query"}, **more
    )
    assert [each.index for each in told.data] == [0, 1]
    vector: Any = told.data[0].embedding
    if form == "base64":
        vector = list(struct.unpack("<3f", base64.b64decode(vector)))
    assert vector == [3, 0.5, -0.25]
    assert told.usage.prompt_tokens == 3
    assert (last_job(runners).model, last_job(runners).prompt_name) == ("fake-embed", "query")
    assert len((await ai.embeddings.create(model="fake-embed", input="one")).data) == 1


async def test_ollama_embeddings(llama: ollama.AsyncClient, runners: Runners) -> None:
    told = await llama.embed("fake-embed:latest", ["a b", "c"], keep_alive="1m")
    assert [list(each) for each in told.embeddings] == [[3, 0.5, -0.25], [1, 0.5, -0.25]]
    assert told.prompt_eval_count == 3
    job = last_job(runners)
    assert (job.model, job.truncate, job.keep_alive_s) == ("fake-embed", True, 60)
    await llama.embed("fake-embed", "a", truncate=False)
    assert last_job(runners).truncate is False
    assert list((await llama.embeddings("fake-embed", "abcd")).embedding) == [4, 0.5, -0.25]
    shown = await llama.show("fake-embed")
    assert shown.capabilities == ["embedding"]


async def test_a_key_is_for_models_and_pays_for_what_was_read(client: httpx.AsyncClient, make: Make) -> None:
    _, headers = make(models=("fake-classify",), tokens=200)
    assert (await client.post("/embed", json={"texts": ["a"]}, headers=headers)).status_code == 403
    for _ in range(3):  # the estimate of each is settled by the three tokens that it was
        body = {"texts": ["a" * 90], "model": "fake-classify"}
        assert (await client.post("/classify", json=body, headers=headers)).status_code == 200
    long = {"texts": ["a" * 300], "model": "fake-classify"}
    refused = await client.post("/classify", json=long, headers=headers)
    assert refused.status_code == 429


async def test_an_embedding_can_be_a_job(client: httpx.AsyncClient) -> None:
    taken = await client.post("/embed", json={"texts": ["a"]}, headers={"Prefer": "respond-async"})
    assert taken.status_code == 202
    place = taken.headers["Location"]
    assert (await ended(client, taken.json()["id"]))["status"] == "done"
    result = await client.get(f"{place}/result")
    assert result.json()["vectors"] == [[1, 0.5, -0.25]]
