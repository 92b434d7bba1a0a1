"""The real `openai` client against the gateway with its fake runners."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator
from typing import Any, Literal

import httpx
import httpx2
import openai
import pytest
from openai import AsyncOpenAI
from openai.types.chat import ChatCompletionMessageParam
from starlette.applications import Starlette

from jobs import ImageJob, SpeechJob, TextJob
from tests.api.fakes import PICTURE, SOUND, FakeRunner

Runners = dict[str, FakeRunner]
HI: list[ChatCompletionMessageParam] = [
    {"role": "developer", "content": "Be brief."},
    {"role": "user", "content": [{"type": "text", "text": "hello "}, {"type": "text", "text": "wörld"}]},
]


@pytest.fixture
async def ai(app: Starlette) -> AsyncIterator[AsyncOpenAI]:
    transport = httpx2.ASGITransport(app)
    async with AsyncOpenAI(
        api_key="none",
        base_url="http://gateway/v1",
        max_retries=0,
        http_client=httpx2.AsyncClient(transport=transport),
    ) as client:
        yield client


async def test_chat(ai: AsyncOpenAI, runners: Runners) -> None:
    answer = await ai.chat.completions.create(
        model="fake",
        messages=HI,
        max_completion_tokens=9,
        temperature=0,
        stop=["x"],
        seed=7,
        extra_body={"top_k": 3},
    )
    assert answer.object == "chat.completion"
    assert answer.choices[0].message.content == "Be brief. hello wörld"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.total_tokens) == (3, 7)
    (job,) = runners["text"].jobs
    assert isinstance(job, TextJob)
    assert (job.max_tokens, job.temperature, job.stop, job.seed, job.top_k) == (9, 0, ("x",), 7, 3)
    assert [message.role for message in job.messages or ()] == ["system", "user"]


async def test_chat_stream(ai: AsyncOpenAI) -> None:
    stream = await ai.chat.completions.create(
        model="fake", messages=HI, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    assert chunks[0].choices[0].delta.role == "assistant"
    said = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(said) == "Be brief. hello wörld"
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert not chunks[-1].choices
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.total_tokens == 7
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert len({chunk.id for chunk in chunks}) == 1
    assert {chunk.model for chunk in chunks} == {"fake"}


async def test_a_stream_without_usage_ends_with_its_reason(ai: AsyncOpenAI) -> None:
    stream = await ai.chat.completions.create(model="fake", messages=HI, stream=True)
    chunks = [chunk async for chunk in stream]
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert "usage" not in chunks[0].model_dump(exclude_unset=True)


async def test_completions(ai: AsyncOpenAI, runners: Runners) -> None:
    answer = await ai.completions.create(model="fake", prompt="hello wörld")
    assert (answer.object, answer.choices[0].text) == ("text_completion", "hello wörld")
    stream = await ai.completions.create(model="fake", prompt="hello wörld", stream=True)
    assert "".join([chunk.choices[0].text async for chunk in stream]) == "hello wörld"
    job = runners["text"].jobs[0]
    assert isinstance(job, TextJob)
    assert (job.prompt, job.max_tokens) == ("hello wörld", 16)


async def test_what_else_a_chat_may_ask_for(ai: AsyncOpenAI, runners: Runners) -> None:
    schema: dict[str, object] = {"type": "object", "properties": {"a": {"type": "integer"}}}
    answer = await ai.chat.completions.create(
        model="fake",
        messages=[
            {"role": "user", "content": "x"},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [
                    {"id": "c1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
                ],
            },
            {"role": "tool", "tool_call_id": "c1", "content": "y"},
        ],
        n=2,
        seed=5,
        logprobs=True,
        top_logprobs=3,
        frequency_penalty=0.5,
        presence_penalty=-0.5,
        tools=[
            {"type": "function", "function": {"name": "look", "strict": True, "parameters": schema}},
            {"type": "function", "function": {"name": "other"}},
        ],
        tool_choice={"type": "function", "function": {"name": "look"}},
        extra_body={"min_p": 0.1, "repetition_penalty": 1.1, "ignore_eos": True, "loras": [{"name": "ink"}]},
    )
    assert [choice.index for choice in answer.choices] == [0, 1]
    job, second = runners["text"].jobs
    assert isinstance(job, TextJob)
    assert {job.seed, second.seed} == {5, 6}
    assert (job.logprobs, job.frequency_penalty, job.presence_penalty) == (3, 0.5, -0.5)
    assert (job.min_p, job.repetition_penalty, job.ignore_eos) == (0.1, 1.1, True)
    assert [(lora.name, lora.weight) for lora in job.loras] == [("ink", 1.0)]
    assert ([tool.name for tool in job.tools], job.tool_choice) == (["look"], "required")
    assert [(m.role, m.tool_call_id) for m in job.messages or ()][-1] == ("tool", "c1")


async def test_a_chat_in_a_schema(ai: AsyncOpenAI, runners: Runners) -> None:
    schema: dict[str, object] = {"type": "object", "properties": {"a": {"type": "integer"}}}
    await ai.chat.completions.create(
        model="fake",
        messages=HI,
        response_format={"type": "json_schema", "json_schema": {"name": "a", "schema": schema}},
    )
    (job,) = runners["text"].jobs
    assert isinstance(job, TextJob)
    assert job.constraint is not None
    assert json.loads(job.constraint.value) == schema


async def test_a_stream_of_several_tells_them_apart(ai: AsyncOpenAI) -> None:
    stream = await ai.chat.completions.create(
        model="fake", messages=HI, n=2, stream=True, stream_options={"include_usage": True}
    )
    said = {0: "", 1: ""}
    usage = None
    async for chunk in stream:
        for choice in chunk.choices:
            said[choice.index] += choice.delta.content or ""
        usage = chunk.usage
    assert said == {0: "Be brief. hello wörld", 1: "Be brief. hello wörld"}
    assert usage is not None
    assert (usage.prompt_tokens, usage.completion_tokens) == (3, 8)


async def test_image_edits_come_as_files(ai: AsyncOpenAI, runners: Runners) -> None:
    answer = await ai.images.edit(
        model="gpt-image-1",
        image=("a.png", PICTURE, "image/png"),
        mask=("b.png", b"mask", "image/png"),
        prompt="a circle",
        n=2,
        size="64x64",
        extra_body={"strength": 0.5, "seed": 3},
    )
    assert [base64.b64decode(each.b64_json or "") for each in answer.data or []] == [PICTURE, PICTURE]
    job = runners["image"].jobs[0]
    assert isinstance(job, ImageJob)
    assert (job.init_image, job.mask_image, job.strength, job.width) == (PICTURE, b"mask", 0.5, 64)


async def test_images(ai: AsyncOpenAI, runners: Runners) -> None:
    answer = await ai.images.generate(
        model="gpt-image-1",
        prompt="a circle",
        n=2,
        size="auto",
        quality="low",
        output_format="webp",
        extra_body={"loras": [{"name": "ink", "weight": 0.5}], "seed": 7, "size": "128x64"},
    )
    assert [base64.b64decode(each.b64_json or "") for each in answer.data or []] == [PICTURE, PICTURE]
    first, second = runners["image"].jobs
    assert isinstance(first, ImageJob)
    assert (first.model, first.width, first.height, first.num_inference_steps) == (
        "fake-picture",
        128,
        64,
        10,
    )
    assert (first.loras[0].name, first.loras[0].weight, first.response_format) == ("ink", 0.5, "webp")
    assert {first.seed, second.seed} == {7, 8}
    with pytest.raises(openai.BadRequestError, match="b64_json"):
        await ai.images.generate(model="dall-e-2", prompt="x", response_format="url")


async def test_an_image_stream_shows_as_many_previews_as_asked_for(ai: AsyncOpenAI) -> None:
    for most in (0, 1):
        stream = await ai.images.generate(model="gpt-image-1", prompt="x", stream=True, partial_images=most)
        events = [event async for event in stream]
        assert [event.type for event in events] == [
            *["image_generation.partial_image"] * most,
            "image_generation.completed",
        ]
        assert base64.b64decode(events[-1].b64_json) == PICTURE


@pytest.mark.parametrize(("verdict", "told"), [("flagged", True), ("passed", False)])
async def test_a_safety_checkers_verdict_comes_with_the_picture(
    ai: AsyncOpenAI, verdict: str, told: bool
) -> None:
    raw = await ai.images.with_raw_response.generate(model="gpt-image-1", prompt=f"{verdict} x")
    assert raw.headers["X-Safety-Checker"] == verdict
    assert [picture.model_extra for picture in raw.parse().data or []] == [{"flagged": told}]
    stream = await ai.images.generate(model="gpt-image-1", prompt=f"{verdict} x", stream=True)
    assert [event.model_extra async for event in stream] == [{"flagged": told}]


async def test_speech(ai: AsyncOpenAI, runners: Runners) -> None:
    answer = await ai.audio.speech.create(
        model="tts-1", voice="alloy", input="four", response_format="wav", extra_body={"seed": 5}
    )
    assert answer.content == SOUND
    async with ai.audio.speech.with_streaming_response.create(
        model="tts-1", voice="otto", input="four", stream_format="audio"
    ) as streamed:
        assert b"".join([piece async for piece in streamed.iter_bytes()]) == SOUND
    first, second = runners["speech"].jobs
    assert isinstance(first, SpeechJob)
    assert isinstance(second, SpeechJob)
    assert (first.model, first.voice, first.seed, first.response_format) == ("fake-sound", "ada", 5, "wav")
    assert (second.voice, second.response_format, second.stream) == ("otto", "mp3", True)


async def test_what_speech_needs_beside_openais_words_is_taken_too(
    client: httpx.AsyncClient, ai: AsyncOpenAI, runners: Runners
) -> None:
    own = {"voice_file": "UEsDBA==", "language": "de", "sample_rate": 48_000}
    await ai.audio.speech.create(model="tts-1", voice="alloy", input="vier", extra_body=own)
    await client.post("/v1/audio/speech", data={"input": "vier"}, files={"voice_file": b"PK\x03\x04"})
    first, second = runners["speech"].jobs
    assert (first.voice_file, first.voice, first.language) == (b"PK\x03\x04", None, "de")
    assert first.sample_rate == 48_000
    assert (second.voice_file, second.text, second.sample_rate) == (b"PK\x03\x04", "vier", None)


async def test_raw_samples_have_the_rate_that_openais_clients_play_them_at(
    ai: AsyncOpenAI, runners: Runners
) -> None:
    asked: list[tuple[Literal["pcm", "wav"], dict[str, int]]]
    asked = [("pcm", {}), ("pcm", {"sample_rate": 16_000}), ("wav", {})]
    for form, more in asked:
        await ai.audio.speech.create(
            model="tts-1", voice="alloy", input="four", response_format=form, extra_body=more
        )
    assert [job.sample_rate for job in runners["speech"].jobs] == [24_000, 16_000, None]


@pytest.mark.parametrize("form", ["audio", "sse", None])
async def test_what_is_wrong_with_a_text_to_say_is_told_of_input(
    client: httpx.AsyncClient, form: str | None
) -> None:
    body = {"input": "fail invalid param=text", "stream_format": form}
    answer = await client.post("/v1/audio/speech", json=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "input")


async def test_speech_as_events(client: httpx.AsyncClient) -> None:
    body = {"input": "four", "voice": {"id": "ada"}, "stream_format": "sse"}
    answer = await client.post("/v1/audio/speech", json=body)
    events = [json.loads(line[6:]) for line in answer.text.splitlines() if line]
    assert [event["type"] for event in events] == ["speech.audio.delta"] * 2 + ["speech.audio.done"]
    assert b"".join(base64.b64decode(event["audio"]) for event in events[:-1]) == SOUND


async def test_models(ai: AsyncOpenAI) -> None:
    listed = {model.id: (model.model_extra or {})["modality"] async for model in await ai.models.list()}
    assert listed == {
        "fake": "text",
        "fake-embed": "embed",
        "fake-classify": "classify",
        "fake-picture": "image",
        "fake-sound": "speech",
    }
    assert (await ai.models.retrieve("tts-1")).id == "fake-sound"
    with pytest.raises(openai.NotFoundError, match="fake-picture") as error:
        await ai.models.retrieve("../etc")
    assert error.value.code == "model_not_found"


@pytest.mark.parametrize(
    ("kind", "raised"),
    [
        ("invalid", openai.BadRequestError),
        ("not_found", openai.NotFoundError),
        ("overloaded", openai.RateLimitError),
        ("internal", openai.InternalServerError),
        ("unavailable", openai.InternalServerError),
    ],
)
async def test_errors_are_the_clients_own(
    ai: AsyncOpenAI, kind: str, raised: type[openai.APIStatusError]
) -> None:
    messages: list[ChatCompletionMessageParam] = [{"role": "user", "content": f"fail {kind}"}]
    with pytest.raises(raised) as error:
        await ai.chat.completions.create(model="fake", messages=messages, stream=kind == "invalid")
    assert (error.value.code, error.value.param) == ("scripted", "model")
    assert isinstance(error.value.body, dict)


async def test_an_error_in_a_stream_is_raised_by_the_client(ai: AsyncOpenAI) -> None:
    stream = await ai.chat.completions.create(
        model="fake", messages=[{"role": "user", "content": "late timeout"}], stream=True
    )
    with pytest.raises(openai.APIError, match="It is timeout"):
        async for _ in stream:
            pass


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/chat/completions", {"messages": []}, "messages"),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}], "store": True}, "store"),
        (
            "/v1/chat/completions",
            {"messages": [{"role": "user", "content": "x"}], "max_completion_tokens": 10**9},
            "max_completion_tokens",
        ),
        ("/v1/completions", {"prompt": ["x"]}, "prompt"),
        ("/v1/images/generations", {"prompt": "x", "n": 9}, "n"),
        ("/v1/images/generations", {"prompt": "x", "size": "10000x10000"}, "size"),
        ("/v1/images/generations", {"prompt": "x", "size": "63x64"}, "size"),
        ("/v1/audio/speech", {"input": "x" * 5000, "voice": "a"}, "input"),
        ("/v1/audio/speech", {"input": "x", "voice": "a", "response_format": "aac"}, "response_format"),
    ],
)
async def test_bad_fields_are_named_in_the_callers_words(
    client: httpx.AsyncClient, runners: Runners, path: str, body: dict[str, Any], param: str
) -> None:
    answer = await client.post(path, json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param
    assert answer.json()["error"]["type"] == "invalid_request_error"
    assert not any(runner.jobs for runner in runners.values())


async def test_a_door_takes_its_own_methods(client: httpx.AsyncClient) -> None:
    answer = await client.get("/v1/chat/completions")
    assert (answer.status_code, answer.headers["Allow"]) == (405, "POST")
    answer = await client.post("/v1/nothing", json={})
    assert answer.json()["error"]["code"] == "unknown_route"
