"""What a user gets from the real service: text, a picture, speech, by every way to ask."""

from __future__ import annotations

import asyncio
import io
import json
import subprocess
from typing import Any

import bentoml
import httpx
import numpy as np
import pytest
import soundfile
from PIL import Image

from tests.api.test_attacks import examples_of, posts
from tests.e2e.process import Served, until

QUESTION = {"messages": [{"role": "user", "content": "What is a star?"}], "temperature": 0}
CIRCLE = {"prompt": "a red circle on a blue background", "seed": 7}
SENTENCE = {"text": "one two three", "seed": 7}


def test_text_answers_in_a_sentence(client: httpx.Client) -> None:
    answer = client.post("/text", json=QUESTION, headers={"X-Request-Id": "mine-1"})
    assert answer.status_code == 200
    assert answer.headers["X-Request-Id"] == "mine-1"
    body = answer.json()
    assert body["id"] == "mine-1"
    assert body["model"] == "tiny-llama"
    assert "star" in body["text"].lower()
    assert body["finish_reason"] == "stop"
    usage = body["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert 0 <= body["timings"]["queue_ms"] <= body["timings"]["total_ms"]


def test_text_streams_what_it_answers(service: Served, client: httpx.Client) -> None:
    whole = client.post("/text", json=QUESTION).json()
    command = ["curl", "-sN", f"{service.url}/text", "-H", "Content-Type: application/json"]
    out = subprocess.run(
        [*command, "-d", json.dumps({**QUESTION, "stream": True})], capture_output=True, check=True, text=True
    ).stdout
    data = [line.removeprefix("data: ") for line in out.splitlines() if line]
    assert data[-1] == "[DONE]"
    events = [json.loads(each) for each in data[:-1]]
    assert "".join(event["delta"] for event in events) == whole["text"]
    assert len(events) > 3
    assert events[-1]["usage"] == whole["usage"]
    assert events[-1]["finish_reason"] == "stop"


def test_image_is_a_picture_with_its_parameters(client: httpx.Client) -> None:
    answer = client.post("/image", json=CIRCLE)
    assert answer.headers["Content-Type"] == "image/png"
    assert answer.headers["X-Seed"] == "7"
    assert float(answer.headers["X-Total-Ms"]) > float(answer.headers["X-Queue-Ms"]) >= 0
    picture = Image.open(io.BytesIO(answer.content))
    assert picture.size == (128, 128)
    assert CIRCLE["prompt"] in picture.info["parameters"]
    corner, centre = (np.array(picture.convert("RGB"), dtype=int)[at] for at in ((4, 4), (64, 64)))
    assert corner[2] > corner[0] + 40, "the background is not blue"
    assert centre[0] > centre[2] + 40, "the middle is not red"


@pytest.mark.parametrize(("name", "form"), [("png", "PNG"), ("jpeg", "JPEG"), ("webp", "WEBP")])
def test_image_formats(client: httpx.Client, name: str, form: str) -> None:
    answer = client.post("/image", json={**CIRCLE, "response_format": name, "num_inference_steps": 2})
    assert Image.open(io.BytesIO(answer.content)).format == form
    assert answer.headers["Content-Type"] == f"image/{name}"


def test_image_streams_its_progress(client: httpx.Client) -> None:
    with client.stream("POST", "/image", json={**CIRCLE, "stream": True, "num_inference_steps": 6}) as answer:
        lines = list(answer.iter_lines())
    names = [line.removeprefix("event: ") for line in lines if line.startswith("event: ")]
    assert names[0] == "queued"
    assert names[-1] == "result"
    assert "progress" in names
    assert "preview" in names


def test_a_lora_changes_the_picture_and_an_unknown_one_is_named(client: httpx.Client) -> None:
    plain = client.post("/image", json=CIRCLE)
    styled = client.post("/image", json={**CIRCLE, "loras": [{"name": "night", "weight": 1.0}]})
    brightness = [
        np.array(Image.open(io.BytesIO(each.content)).convert("L")).mean() for each in (plain, styled)
    ]
    assert brightness[1] < brightness[0] - 10
    unknown = client.post("/image", json={**CIRCLE, "loras": [{"name": "../night"}]})
    assert unknown.status_code == 404
    assert unknown.json()["error"]["param"] == "loras"
    assert "night" in unknown.json()["error"]["message"]


def test_a_lora_changes_the_text_and_an_unknown_one_is_named(client: httpx.Client) -> None:
    asked = {"messages": [{"role": "user", "content": "What is a star?"}], "temperature": 0}
    plain = client.post("/text", json=asked).json()["text"]
    sailors = client.post("/text", json={**asked, "loras": [{"name": "sailor"}]}).json()["text"]
    assert sailors == f"Ahoy! {plain} Arr!"
    unknown = client.post("/text", json={**asked, "loras": [{"name": "../sailor"}]})
    assert (unknown.status_code, unknown.json()["error"]["param"]) == (404, "loras")
    assert "sailor" in unknown.json()["error"]["message"]


@pytest.mark.parametrize("name", ["wav", "flac", "ogg", "mp3"])
def test_speech_is_sound(client: httpx.Client, name: str) -> None:
    answer = client.post("/speech", json={**SENTENCE, "response_format": name})
    assert answer.status_code == 200
    sound, rate = soundfile.read(io.BytesIO(answer.content))
    assert rate == int(answer.headers["X-Sample-Rate"]) == 16000
    assert 0.3 < len(sound) / rate < 15
    assert np.isfinite(sound).all()
    assert np.abs(sound).max() > 0.01


def test_speech_streams_one_file(client: httpx.Client) -> None:
    whole = client.post("/speech", json={**SENTENCE, "response_format": "pcm"}).content
    with client.stream(
        "POST", "/speech", json={**SENTENCE, "response_format": "pcm", "stream": True}
    ) as answer:
        assert answer.headers["X-Sample-Rate"] == "16000"
        assert b"".join(answer.iter_bytes()) == whole


def test_bentoml_clients_call_by_name(service: Served) -> None:
    sync: Any
    with bentoml.SyncHTTPClient(service.url) as sync:
        assert sync.text(prompt="Once upon a time", max_tokens=5)["usage"]["completion_tokens"] <= 5
        assert bytes(sync.image(prompt="a white star", num_inference_steps=2))[:4] == b"\x89PNG"
        assert bytes(sync.speech(text="two"))[:4] == b"RIFF"
        assert "[DONE]" in "".join(sync.text_stream(prompt="Once", max_tokens=3))

    async def ask() -> str:
        client: Any
        async with bentoml.AsyncHTTPClient(service.url) as client:
            return str((await client.text(prompt="Once upon a time", max_tokens=5))["text"])

    assert asyncio.run(ask())


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/text", {"prompt": "a", "model": "nope"}, "model"),
        ("/image", {"prompt": "a", "model": "nope"}, "model"),
        ("/speech", {"text": "one", "voice": "../../etc/passwd"}, "voice"),
    ],
)
def test_what_is_not_there_is_404_with_what_there_is(
    client: httpx.Client, path: str, body: dict[str, str], param: str
) -> None:
    answer = client.post(path, json=body)
    assert answer.status_code == 404
    error = answer.json()["error"]
    assert error["param"] == param
    assert "There are" in error["message"] or "there are" in error["message"]


def test_a_long_prompt_is_refused_by_its_numbers(client: httpx.Client) -> None:
    answer = client.post("/text", json={"prompt": "a b c " * 400, "max_tokens": 64})
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "context_length_exceeded"


def test_a_client_that_leaves_cancels_its_row(client: httpx.Client) -> None:
    def cancelled() -> float:
        lines = client.get("/metrics").text.splitlines()
        name = 'triptych_rows_total{modality="image",outcome="cancelled"}'
        return sum(float(line.split()[-1]) for line in lines if line.startswith(name))

    before = cancelled()
    body = {**CIRCLE, "stream": True, "num_inference_steps": 100, "width": 256, "height": 256}
    with client.stream("POST", "/image", json=body) as answer:
        next(answer.iter_lines())
    until(lambda: cancelled() == before + 1, 10, "the row's cancelling")


def test_metrics_tell_queue_from_work(client: httpx.Client) -> None:
    client.post("/text", json={"prompt": "Once", "max_tokens": 2})
    metrics = client.get("/metrics").text
    for name in (
        'triptych_rows_total{modality="text",outcome="done"}',
        'triptych_queue_seconds_count{modality="text"}',
        'triptych_work_seconds_count{modality="text"}',
        'triptych_jobs_at_work{modality="text",replica="1"}',
        'triptych_step_seconds_count{lane="decode",modality="text"}',
        'triptych_rows_per_step_count{lane="decode",modality="text"}',
        'triptych_queue_depth{modality="text",replica="1"}',
    ):
        assert name in metrics


def test_each_example_of_the_document_answers_200(client: httpx.Client) -> None:
    tried: list[str] = []
    for path, schema in posts(client.get("/docs.json").json()):
        answer = client.post(path, json=examples_of(schema))
        assert answer.status_code == 200, (path, answer.text)
        tried.append(path)
    assert {"/text", "/image", "/speech_stream", "/v1/images/edits", "/api/show"} <= set(tried)
