"""What a good request gets from each endpoint, whole and streamed."""

from __future__ import annotations

import base64
import json
from typing import Any

import httpx
import pytest

from jobs import ImageJob, SpeechJob, TextJob
from tests.api.fakes import PICTURE, SOUND, FakeRunner

Runners = dict[str, FakeRunner]


def events_of(body: str) -> list[tuple[str, Any]]:
    """Server-sent events as (name, data); the data parsed unless it is [DONE]."""
    found: list[tuple[str, Any]] = []
    for block in body.strip().split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.split("\n"))
        data = fields["data"]
        found.append((fields.get("event", ""), data if data == "[DONE]" else json.loads(data)))
    return found


async def test_text(client: httpx.AsyncClient, runners: Runners) -> None:
    body = {"prompt": "hello wörld", "seed": 7, "max_tokens": 9, "stop": "x", "top_k": 3, "model": "m"}
    answer = await client.post("/text", json=body, headers={"X-Request-Id": "mine-1"})
    assert answer.status_code == 200
    assert answer.headers["X-Request-Id"] == "mine-1"
    assert answer.headers["X-Seed"] == "7"
    assert answer.json() == {
        "id": "mine-1",
        "model": "m",
        "text": "hello wörld",
        "finish_reason": "stop",
        "seed": 7,
        "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5},
        "timings": {"queue_ms": 1.25, "total_ms": 20.5},
    }
    (job,) = runners["text"].jobs
    assert isinstance(job, TextJob)
    assert (job.seed, job.max_tokens, job.stop, job.top_k, job.timeout_s) == (7, 9, ("x",), 3, 20)
    assert (job.stream, job.messages, job.model) == (False, None, "m")


async def test_text_from_messages(client: httpx.AsyncClient, runners: Runners) -> None:
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi."}]
    answer = await client.post("/text", json={"messages": turns, "stop": ["a", "b"]})
    assert answer.json()["text"] == "Be brief. Hi."
    (job,) = runners["text"].jobs
    assert isinstance(job, TextJob)
    assert [(m.role, m.content) for m in job.messages or ()] == [("system", "Be brief."), ("user", "Hi.")]
    assert (job.prompt, job.stop) == (None, ("a", "b"))


@pytest.mark.parametrize(("path", "body"), [("/text", {"stream": True}), ("/text_stream", {})])
async def test_text_stream(client: httpx.AsyncClient, path: str, body: dict[str, Any]) -> None:
    answer = await client.post(path, json={"prompt": "hello wörld", "seed": 7} | body)
    assert answer.headers["Content-Type"].startswith("text/event-stream")
    assert answer.headers["X-Seed"] == "7"
    assert answer.content.isascii()
    events = events_of(answer.text)
    assert [data["delta"] for _, data in events[:-1]] == ["hello", " ", "wörld", ""]
    assert {data["id"] for _, data in events[:-1]} == {answer.headers["X-Request-Id"]}
    last = events[-2][1]
    assert (last["finish_reason"], last["seed"], last["model"]) == ("stop", 7, "fake")
    assert last["usage"]["total_tokens"] == 5
    assert last["timings"] == {"queue_ms": 1.25, "total_ms": 20.5}
    assert events[-1] == ("", "[DONE]")


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
async def test_image(client: httpx.AsyncClient, runners: Runners, kind: str) -> None:
    body = {"prompt": "x", "seed": 1, "width": 64, "loras": [{"name": "ink"}], "response_format": kind}
    answer = await client.post("/image", json=body)
    assert answer.content == PICTURE
    assert answer.headers["Content-Type"] == f"image/{kind}"
    headers = [answer.headers[f"X-{name}"] for name in ("Seed", "Queue-Ms", "Total-Ms")]
    assert headers == ["1", "1.250", "20.500"]
    (job,) = runners["image"].jobs
    assert isinstance(job, ImageJob)
    assert (job.width, job.height, job.loras[0].name, job.loras[0].weight) == (64, None, "ink", 1.0)


@pytest.mark.parametrize(("path", "body"), [("/image", {"stream": True}), ("/image_stream", {})])
async def test_image_stream(client: httpx.AsyncClient, path: str, body: dict[str, Any]) -> None:
    answer = await client.post(path, json={"prompt": "x", "seed": 1} | body)
    events = events_of(answer.text)
    assert [name for name, _ in events] == ["queued", "progress", "preview", "progress", "result"]
    assert events[0][1] == {"position": 2}
    assert events[1][1] == {"step": 1, "total": 2}
    assert base64.b64decode(events[2][1]["b64"]) == b"rough"
    result = events[-1][1]
    assert base64.b64decode(result["b64"]) == PICTURE
    assert (result["media_type"], result["seed"]) == ("image/png", 1)
    assert result["id"] == answer.headers["X-Request-Id"]


async def test_speech(client: httpx.AsyncClient, runners: Runners) -> None:
    answer = await client.post("/speech", json={"text": "four", "voice": "v", "seed": 5})
    assert answer.content == SOUND
    assert answer.headers["Content-Type"] == "audio/wav"
    headers = [answer.headers[f"X-{name}"] for name in ("Seed", "Queue-Ms", "Total-Ms", "Sample-Rate")]
    assert headers == ["5", "1.250", "20.500", "24000"]
    (job,) = runners["speech"].jobs
    assert isinstance(job, SpeechJob)
    assert (job.text, job.voice, job.temperature, job.response_format) == ("four", "v", 0.6, "wav")


@pytest.mark.parametrize(("path", "body"), [("/speech", {"stream": True}), ("/speech_stream", {})])
async def test_speech_stream(client: httpx.AsyncClient, path: str, body: dict[str, Any]) -> None:
    answer = await client.post(path, json={"text": "four", "seed": 5} | body)
    assert answer.content == SOUND
    assert answer.headers["Content-Type"] == "audio/wav"
    assert (answer.headers["X-Sample-Rate"], answer.headers["X-Seed"]) == ("24000", "5")


async def test_a_seed_left_out_is_fresh_and_told(client: httpx.AsyncClient) -> None:
    seeds: set[int] = set()
    for path, body in [
        ("/text", {"prompt": "x"}),
        ("/image", {"prompt": "x"}),
        ("/speech", {"text": "x"}),
    ] * 2:
        answer = await client.post(path, json=body)
        seeds.add(int(answer.headers["X-Seed"]))
    assert len(seeds) == 6


async def test_jobs_of_one_request_id_are_told_apart(client: httpx.AsyncClient, runners: Runners) -> None:
    for _ in range(2):
        await client.post("/text", json={"prompt": "x"}, headers={"X-Request-Id": "same"})
    first, second = runners["text"].jobs
    assert first.id != second.id
