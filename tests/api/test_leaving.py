"""A job that nobody waits for any more is cancelled at its runner, by its id."""

from __future__ import annotations

import asyncio

import pytest
from starlette.applications import Starlette

from tests.api.caller import Caller, until
from tests.api.fakes import FakeRunner

Runners = dict[str, FakeRunner]
REQUESTS = {"text": "prompt", "image": "prompt", "speech": "text"}


async def gone(runner: FakeRunner) -> None:
    """The one job was cancelled by its id, and lives no more."""
    await until(lambda: runner.cancelled == [runner.jobs[0].id] and not runner.live)


@pytest.mark.parametrize("modality", REQUESTS)
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("action", ["hang", "mute"])
async def test_a_caller_that_leaves_cancels_its_job(
    app: Starlette, runners: Runners, modality: str, stream: bool, action: str
) -> None:
    runner = runners[modality]
    caller = Caller(app, f"/{modality}", {REQUESTS[modality]: action, "stream": stream})
    await until(lambda: len(runner.live) == 1)
    caller.hang_up()
    await gone(runner)
    await caller.task


async def test_a_caller_that_leaves_in_mid_stream_cancels_its_job(app: Starlette, runners: Runners) -> None:
    caller = Caller(app, "/image", {"prompt": "hang", "stream": True})
    await caller.first_byte.wait()
    caller.hang_up()
    await gone(runners["image"])
    await caller.task
    assert caller.body.startswith(b"event: queued\n")


async def test_a_job_that_ended_is_not_cancelled(app: Starlette, runners: Runners) -> None:
    caller = Caller(app, "/text", {"prompt": "hello"})
    await caller.task
    caller.hang_up()
    assert caller.finished
    assert runners["text"].jobs
    assert not runners["text"].cancelled


async def test_many_leave_and_nothing_stays(app: Starlette, runners: Runners) -> None:
    callers = [Caller(app, "/text", {"prompt": "hang", "stream": n % 2 == 0}) for n in range(60)]
    await until(lambda: len(runners["text"].live) == 60)
    for caller in callers:
        caller.hang_up()
    await until(lambda: not runners["text"].live)
    await asyncio.gather(*(caller.task for caller in callers))
    assert len(runners["text"].cancelled) == 60


async def test_sound_that_fails_on_the_way_is_a_cut_connection(app: Starlette) -> None:
    caller = Caller(app, "/speech", {"text": "late internal", "stream": True})
    await caller.task
    assert caller.status == 200
    assert len(caller.body) > 1000
    assert not caller.finished
