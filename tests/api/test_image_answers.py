"""Several pictures in one request: one job each, one answer, and nothing left behind when one fails."""

from __future__ import annotations

import base64
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette

from gateway.schemas import MAX_SEED
from jobs import ImageJob
from tests.api.caller import Caller, until
from tests.api.fakes import PICTURE, FakeRunner
from tests.api.test_answers import events_of

Runners = dict[str, FakeRunner]


async def test_several_pictures_are_json_with_a_seed_each(
    client: httpx.AsyncClient, runners: Runners
) -> None:
    body = {"prompt": "x", "seed": 5, "num_images": 3, "response_format": "webp"}
    answer = await client.post("/image", json=body)
    assert answer.headers["Content-Type"] == "application/json"
    headers = [answer.headers[f"X-{name}"] for name in ("Seed", "Queue-Ms", "Total-Ms")]
    assert headers == ["5", "1.250", "20.500"]
    told = answer.json()
    assert [image["seed"] for image in told["images"]] == [5, 6, 7]
    assert {base64.b64decode(image["b64_json"]) for image in told["images"]} == {PICTURE}
    assert (told["model"], told["media_type"]) == ("fake", "image/webp")
    assert told["id"] == answer.headers["X-Request-Id"]
    assert told["timings"] == {"queue_ms": 1.25, "total_ms": 20.5}
    assert len({job.id for job in runners["image"].jobs}) == 3
    assert sorted(job.seed for job in runners["image"].jobs) == [5, 6, 7]


async def test_the_seed_after_the_largest_is_0(client: httpx.AsyncClient) -> None:
    answer = await client.post("/image", json={"prompt": "x", "seed": MAX_SEED, "num_images": 2})
    assert [image["seed"] for image in answer.json()["images"]] == [MAX_SEED, 0]


async def test_a_stream_of_several_tells_whose_event_it_is(client: httpx.AsyncClient) -> None:
    answer = await client.post("/image", json={"prompt": "x", "seed": 5, "num_images": 2, "stream": True})
    events = events_of(answer.text)
    for index in (0, 1):
        own = [(name, data) for name, data in events if data["index"] == index]
        assert [name for name, _ in own] == ["queued", "progress", "preview", "progress", "result"]
        assert own[-1][1]["seed"] == 5 + index


async def test_one_that_fails_fails_the_request(client: httpx.AsyncClient) -> None:
    for stream in (False, True):
        body = {"prompt": "fail not_found", "num_images": 3, "stream": stream}
        answer = await client.post("/image", json=body)
        assert answer.status_code == 404
        assert answer.json()["error"]["code"] == "scripted"
    late = await client.post("/image", json={"prompt": "late timeout", "num_images": 2, "stream": True})
    name, data = events_of(late.text)[-1]
    assert (name, data["error"]["type"]) == ("error", "timeout_error")


async def test_a_caller_who_leaves_cancels_each_picture(app: Starlette, runners: Runners) -> None:
    for stream in (False, True):
        runner = runners["image"]
        seen = len(runner.jobs)
        caller = Caller(app, "/image", {"prompt": "hang", "num_images": 3, "stream": stream})
        await until(lambda runner=runner, seen=seen: len(runner.jobs) == seen + 3)
        asked = {job.id for job in runner.jobs[seen:]}
        caller.hang_up()
        await until(lambda runner=runner, asked=asked: asked <= set(runner.cancelled) and not runner.live)
        await caller.task


GIVEN = bytes(range(256)) * 40


@pytest.mark.parametrize("way", ["base64", "multipart"])
async def test_pictures_reach_the_runner_as_bytes(
    client: httpx.AsyncClient, runners: Runners, way: str
) -> None:
    words = {"prompt": "a cat", "strength": 0.4, "timestep_spacing": "karras", "num_images": 2, "seed": 5}
    if way == "base64":
        encoded = base64.b64encode(GIVEN).decode()
        answer = await client.post("/image", json={**words, "init_image": encoded, "mask_image": encoded})
    else:
        answer = await client.post(
            "/image",
            data={name: str(value) for name, value in words.items()},
            files={"init_image": ("in.png", GIVEN), "mask_image": ("mask.png", GIVEN)},
        )
    assert answer.status_code == 200, answer.text
    jobs = [job for job in runners["image"].jobs if isinstance(job, ImageJob)]
    assert [job.seed for job in jobs] == [5, 6]
    for job in jobs:
        assert job.init_image == job.mask_image == GIVEN
        assert (job.strength, job.timestep_spacing) == (0.4, "karras")


async def test_a_picture_of_11_mib_goes_through_and_one_of_13_does_not(
    client: httpx.AsyncClient, runners: Runners
) -> None:
    async def post(size: int) -> httpx.Response:
        return await client.post("/image", data={"prompt": "x"}, files={"init_image": b"x" * size})

    assert (await post(11 << 20)).status_code == 200
    assert (await post(13 << 20)).status_code == 413
    assert len(runners["image"].jobs) == 1


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"init_image": "http://127.0.0.1/x.png"}, "init_image"),
        ({"init_image": "data:image/png;base64,AAAA"}, "init_image"),
        ({"mask_image": "AAAA"}, "mask_image"),
        ({"strength": 0.5}, "strength"),
        ({"init_image": "AAAA", "strength": 0}, "strength"),
        ({"init_image": "AAAA", "strength": 1.1}, "strength"),
    ],
)
async def test_what_makes_no_sense_of_pictures_is_400(
    client: httpx.AsyncClient, runners: Runners, fields: dict[str, Any], param: str
) -> None:
    answer = await client.post("/image", json={"prompt": "x", **fields})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param
    assert not runners["image"].jobs


@pytest.mark.parametrize(("verdict", "told"), [("flagged", True), ("passed", False)])
async def test_a_safety_checkers_verdict_is_in_a_header_and_beside_each_picture(
    client: httpx.AsyncClient, verdict: str, told: bool
) -> None:
    one = await client.post("/image", json={"prompt": f"{verdict} x"})
    assert one.headers["X-Safety-Checker"] == verdict
    two = await client.post("/image", json={"prompt": f"{verdict} x", "num_images": 2})
    assert two.headers["X-Safety-Checker"] == verdict
    assert [image["flagged"] for image in two.json()["images"]] == [told, told]
    streamed = await client.post("/image", json={"prompt": f"{verdict} x", "stream": True})
    assert events_of(streamed.text)[-1][1]["flagged"] is told
    unseen = await client.post("/image", json={"prompt": "x"})
    assert "X-Safety-Checker" not in unseen.headers
