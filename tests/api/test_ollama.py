"""The real `ollama` client against the gateway with its fake runners."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import httpx
import ollama
import pytest
from starlette.applications import Starlette

from jobs import EmbedJob, Job, TextJob
from tests.api.fakes import RESIDENT, FakeRunner

Runners = dict[str, FakeRunner]


@pytest.fixture
async def llama(app: Starlette) -> ollama.AsyncClient:
    return ollama.AsyncClient(host="http://gateway", transport=httpx.ASGITransport(app))


def job_of(runners: Runners, place: int = -1) -> TextJob:
    job = runners["text"].jobs[place]
    assert isinstance(job, TextJob)
    return job


async def test_generate(llama: ollama.AsyncClient, runners: Runners) -> None:
    options = {"temperature": 0, "seed": 7, "num_predict": 9, "stop": ["x"], "repeat_penalty": 1.5}
    answer = await llama.generate(
        model="fake:latest", system="Be brief.", prompt="hello wörld", options=options, keep_alive="1h30m"
    )
    assert answer.response == "Be brief. hello wörld"
    assert (answer.done, answer.done_reason, answer.model) == (True, "stop", "fake:latest")
    assert (answer.prompt_eval_count, answer.eval_count, answer.total_duration) == (3, 4, 20_500_000)
    job = job_of(runners)
    assert (job.model, job.seed, job.max_tokens, job.stop, job.keep_alive_s) == ("fake", 7, 9, ("x",), 5400)
    assert (job.repetition_penalty, job.prompt) == (1.5, None)
    raw = await llama.generate(model="fake", prompt="hello", raw=True, keep_alive="-5m")
    assert raw.response == "hello"
    assert (job_of(runners).prompt, job_of(runners).max_tokens, job_of(runners).keep_alive_s) == (
        "hello",
        None,
        -1,
    )


async def test_generate_streams_lines(llama: ollama.AsyncClient) -> None:
    pieces = [piece async for piece in await llama.generate(model="fake", prompt="hello wörld", stream=True)]
    assert "".join(piece.response or "" for piece in pieces) == "hello wörld"
    assert [piece.done for piece in pieces] == [False] * (len(pieces) - 1) + [True]
    assert len(pieces) > 2
    assert pieces[-1].eval_count == 2


@pytest.mark.parametrize(("model", "kind"), [("fake", TextJob), ("fake-embed", EmbedJob)])
async def test_an_empty_prompt_moves_the_model(
    llama: ollama.AsyncClient, runners: Runners, monkeypatch: pytest.MonkeyPatch, model: str, kind: type[Job]
) -> None:
    monkeypatch.setattr("tests.api.fakes.RESIDENT", {})
    jobs = runners["text"].jobs
    assert (await llama.generate(model=model, keep_alive=0)).done_reason == "unload"
    assert not jobs, "it is not in memory"
    assert (await llama.generate(model=model)).done_reason == "load"
    assert (type(jobs[-1]), jobs[-1].model, jobs[-1].keep_alive_s) == (kind, model, None)
    monkeypatch.setattr("tests.api.fakes.RESIDENT", {model: 300.0})
    assert (await llama.generate(model=model)).done_reason == "load"
    assert len(jobs) == 1, "it is there already"
    assert (await llama.generate(model=model, keep_alive="10m")).done_reason == "load"
    assert (await llama.generate(model=model, keep_alive=0)).done_reason == "unload"
    assert [job.keep_alive_s for job in jobs[1:]] == [600, 0]


async def test_chat(llama: ollama.AsyncClient, runners: Runners) -> None:
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hello"}]
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    answer = await llama.chat(model="fake", messages=turns, format=schema)
    assert answer.message.content == "Be brief. hello"
    assert answer.message.role == "assistant"
    constraint = job_of(runners).constraint
    assert constraint is not None
    assert json.loads(constraint.value) == schema
    pieces = [piece async for piece in await llama.chat(model="fake", messages=turns, stream=True)]
    assert "".join(piece.message.content or "" for piece in pieces) == "Be brief. hello"


async def test_models(llama: ollama.AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [model.model for model in (await llama.list()).models] == ["fake", "fake-embed"]
    (loaded,) = (await llama.ps()).models
    assert (loaded.model, loaded.size) == ("fake", 7)
    assert loaded.expires_at is not None
    assert 290 < (loaded.expires_at - datetime.now(UTC)).total_seconds() <= 300
    monkeypatch.setitem(RESIDENT, "fake", None)
    (loaded,) = (await llama.ps()).models
    assert loaded.expires_at is None, "it stays"
    monkeypatch.delitem(RESIDENT, "fake")
    assert not (await llama.ps()).models, "it is not in memory"
    assert (await llama.show("fake:latest")).license == "MIT"
    for asked in (llama.show("nope"), llama.generate(model="nope", prompt="")):
        with pytest.raises(ollama.ResponseError, match="There are: fake") as error:
            await asked
        assert error.value.status_code == 404


async def test_errors_are_one_string(llama: ollama.AsyncClient, client: httpx.AsyncClient) -> None:
    with pytest.raises(ollama.ResponseError, match="It is overloaded") as error:
        await llama.generate(model="fake", prompt="fail overloaded", raw=True)
    assert error.value.status_code == 429
    with pytest.raises(ollama.ResponseError, match="It is timeout"):
        async for _ in await llama.generate(model="fake", prompt="late timeout", raw=True, stream=True):
            pass
    assert (await client.get("/api/nothing")).json() == {
        "error": "There is no such route; /docs.json lists them."
    }


@pytest.mark.parametrize(
    ("body", "name"),
    [
        ({"model": "fake", "prompt": "x", "options": {"num_gpu": 3}}, "options.num_gpu"),
        ({"model": "fake", "prompt": "x", "images": ["aGk="]}, "images"),
        ({"model": "fake", "prompt": "x", "options": {"temperature": 9}}, "options.temperature"),
        ({"model": "fake", "prompt": "x", "keep_alive": "soon"}, "keep_alive"),
        ({"model": "fake", "prompt": "x", "keep_alive": "25h"}, "keep_alive"),
        ({"prompt": "x"}, "model"),
    ],
)
async def test_bad_fields(
    client: httpx.AsyncClient, runners: Runners, body: dict[str, Any], name: str
) -> None:
    answer = await client.post("/api/generate", json=body)
    assert answer.status_code == 400
    assert f"`{name}`" in answer.json()["error"]
    assert not runners["text"].jobs
