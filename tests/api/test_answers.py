"""What a good request gets from each endpoint, whole and streamed."""

from __future__ import annotations

import base64
import json
from typing import Any

import httpx
import pytest

from jobs import ImageJob, LoraChoice, SpeechJob, TextJob, Tool, ToolCall
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


async def test_all_that_a_text_can_be_asked_goes_into_its_job(
    client: httpx.AsyncClient, runners: Runners
) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"at": 1}'}}
    turns = [
        {"role": "user", "content": "Look."},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "a cat", "tool_call_id": "c1"},
    ]
    tool: dict[str, Any] = {"name": "look", "description": "Looks.", "parameters": {"type": "object"}}
    body = {
        "messages": turns,
        "max_tokens": None,
        "min_p": 0.1,
        "repetition_penalty": 1.1,
        "presence_penalty": 0.2,
        "frequency_penalty": 0.3,
        "logprobs": 2,
        "keep_alive_s": 60,
        "loras": [{"name": "ink", "weight": 0.5}],
        "tools": [{"type": "function", "function": tool}],
        "tool_choice": "required",
    }
    answer = await client.post("/text", json=body)
    assert answer.status_code == 200
    (job,) = runners["text"].jobs
    assert isinstance(job, TextJob)
    assert job.messages is not None
    assert job.messages[1].tool_calls == (ToolCall(id="c1", name="look", arguments='{"at": 1}'),)
    assert (job.messages[2].role, job.messages[2].tool_call_id) == ("tool", "c1")
    assert job.tools == (Tool(**tool),)
    penalties = (job.repetition_penalty, job.presence_penalty, job.frequency_penalty)
    assert (job.max_tokens, job.min_p, penalties) == (None, 0.1, (1.1, 0.2, 0.3))
    assert (job.logprobs, job.tool_choice, job.keep_alive_s) == (2, "required", 60)
    assert job.loras == (LoraChoice(name="ink", weight=0.5),)


@pytest.mark.parametrize(
    ("given", "kind", "value"),
    [
        ({"type": "regex", "pattern": "a+"}, "regex", "a+"),
        ({"type": "json_object"}, "json_schema", '{"type": "object"}'),
        ({"type": "json_schema", "json_schema": {"const": 5}}, "json_schema", '{"const": 5}'),
    ],
)
async def test_a_response_format_becomes_a_constraint(
    client: httpx.AsyncClient, runners: Runners, given: dict[str, Any], kind: str, value: str
) -> None:
    await client.post("/text", json={"prompt": "x", "response_format": given})
    (job,) = runners["text"].jobs
    assert isinstance(job, TextJob)
    assert job.constraint is not None
    assert (job.constraint.kind, job.constraint.value) == (kind, value)


async def test_n_texts_are_those_of_the_seeds_from_the_first(
    client: httpx.AsyncClient, runners: Runners
) -> None:
    body = {"prompt": "hello you", "seed": 2**32 - 1, "n": 3, "logprobs": 1}
    answer = (await client.post("/text", json=body)).json()
    assert [job.seed for job in runners["text"].jobs] == [2**32 - 1, 0, 1]
    assert [choice["seed"] for choice in answer["choices"]] == [2**32 - 1, 0, 1]
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
    assert answer["text"] == answer["choices"][0]["text"] == "hello you"
    assert answer["usage"] == {"prompt_tokens": 3, "completion_tokens": 6, "total_tokens": 9}
    streamed = events_of((await client.post("/text", json=body | {"stream": True})).text)
    assert streamed.pop() == ("", "[DONE]")
    pieces = {i: "".join(data["delta"] for _, data in streamed if data["index"] == i) for i in range(3)}
    assert pieces == dict.fromkeys(range(3), "hello you")
    assert streamed[-1][1]["usage"]["completion_tokens"] == 6


async def test_logprobs_and_tool_calls_are_told(client: httpx.AsyncClient) -> None:
    turns = [{"role": "user", "content": "call look"}]
    tool = {"type": "function", "function": {"name": "look"}}
    body = {"messages": turns, "logprobs": 1, "tools": [tool]}
    answer = (await client.post("/text", json=body)).json()
    best = [{"token": "call", "logprob": -0.5}]
    assert answer["logprobs"] == [{"token": "call", "logprob": -0.5, "top": best}]
    call = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
    assert (answer["finish_reason"], answer["tool_calls"]) == ("tool_calls", [call])
    streamed = events_of((await client.post("/text", json=body | {"stream": True})).text)
    assert streamed[0][1]["logprobs"] == answer["logprobs"]
    assert streamed[-2][1]["tool_calls"] == [call]


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


async def test_speech_events(client: httpx.AsyncClient, runners: Runners) -> None:
    body = {"text": "four", "seed": 5, "stream": True, "stream_format": "sse"}
    answer = await client.post("/speech", json=body)
    assert answer.headers["Content-Type"].startswith("text/event-stream")
    assert answer.headers["X-Seed"] == "5"
    events = events_of(answer.text)
    assert [name for name, _ in events] == ["queued", "audio", "audio", "result"]
    sound = [data for name, data in events if name == "audio"]
    assert b"".join(base64.b64decode(data["b64"]) for data in sound) == SOUND
    assert (sound[0]["media_type"], sound[0]["sample_rate"]) == ("audio/wav", 24_000)
    result = events[-1][1]
    assert (result["id"], result["seed"]) == (answer.headers["X-Request-Id"], 5)
    assert result["duration_s"] == 1.5
    assert runners["speech"].jobs[0].stream


async def test_speech_events_tell_a_late_failure(client: httpx.AsyncClient) -> None:
    body = {"text": "late internal", "stream": True, "stream_format": "sse"}
    events = events_of((await client.post("/speech", json=body)).text)
    assert [name for name, _ in events] == ["queued", "audio", "audio", "error"]
    assert events[-1][1]["error"]["type"] == "internal_error"


async def test_a_voice_of_ones_own_is_uploaded(client: httpx.AsyncClient, runners: Runners) -> None:
    form = {"text": "four", "language": "de", "sample_rate": "48000"}
    answer = await client.post("/speech", data=form, files={"voice_file": ("me.npz", b"PK\x03\x04 me")})
    assert answer.status_code == 200
    (job,) = runners["speech"].jobs
    assert isinstance(job, SpeechJob)
    assert (job.voice_file, job.language, job.sample_rate) == (b"PK\x03\x04 me", "de", 48_000)
    both = await client.post("/speech", json={"text": "x", "voice": "a", "voice_file": "QUJD"})
    assert (both.status_code, both.json()["error"]["param"]) == (400, "voice_file")


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
