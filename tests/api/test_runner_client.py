"""The client of one runner: frames, deadlines, a runner that is gone, and cancels that get through."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from dataclasses import replace
from typing import Any

import aiohttp
import pytest
from bentoml.exceptions import BentoMLException, ServiceUnavailable

from gateway.links import frame_lines
from gateway.options import GatewayOptions
from gateway.remote import Remotes, addresses
from gateway.runners import RunnerClient
from jobs import (
    Done,
    EmbedJob,
    EmbedResult,
    ErrorKind,
    Event,
    Failed,
    JobError,
    Queued,
    TextDelta,
    TextJob,
    TextResult,
    encode_event,
)
from tests.api.caller import until

OPTIONS = GatewayOptions(silence_s=0.5, stall_s=0.3, health_timeout_s=0.2, max_in_flight=2, grace_s=0.1)
RESULT = TextResult(model="m", seed=1, text="ä", finish_reason="stop", prompt_tokens=1, completion_tokens=1)
QUEUED = encode_event(Queued(position=1))
DELTA = encode_event(TextDelta(text="ä"))
DONE = encode_event(Done(result=RESULT, queue_ms=1, total_ms=2))


def job(timeout_s: float = 10) -> TextJob:
    return TextJob(id="j1", timeout_s=timeout_s, seed=1, prompt="x", max_tokens=1, temperature=0)


class ScriptedRunner:
    """Yields what it is given: text is sent, a number of seconds is waited, an exception raised."""

    def __init__(self, *steps: str | float | Exception) -> None:
        self.steps = steps
        self.alive = asyncio.Event()
        self.alive.set()
        self.dead = asyncio.Event()
        self.knows_after = 0
        self.cancels: list[str] = []
        self.runs = 0

    async def run(self, job: str) -> AsyncGenerator[str, None]:
        self.runs += 1
        for step in self.steps:
            if isinstance(step, str):
                yield step
            elif isinstance(step, Exception):
                raise step
            else:
                await asyncio.sleep(step)

    async def answer(self, jobs: list[str]) -> list[str]:
        return ["".join([step async for step in self.run(job)]) for job in jobs]

    async def cancel(self, id: str) -> bool:
        self.cancels.append(id)
        return len(self.cancels) > self.knows_after

    async def voices(self) -> list[dict[str, str]]:
        return []

    async def state(self) -> dict[str, Any]:
        await self.alive.wait()
        return {"state": "ready", "why": "", "models": []}

    async def watch(self) -> AsyncGenerator[str, None]:
        """As a killed process is seen: open streams break, new ones wait until it is back."""
        await self.alive.wait()
        while True:
            yield "\n"
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.dead.wait(), 0.1)
                raise aiohttp.ClientPayloadError

    def die(self) -> None:
        self.alive.clear()
        self.dead.set()

    def come_back(self) -> None:
        self.dead.clear()
        self.alive.set()


def client(*steps: str | float | Exception) -> tuple[RunnerClient, ScriptedRunner]:
    runner = ScriptedRunner(*steps)
    return RunnerClient("text", [runner], OPTIONS), runner


async def events(client: RunnerClient, timeout_s: float = 10) -> list[Event]:
    return [event async for event in client.run(job(timeout_s))]


async def failure(client: RunnerClient, timeout_s: float = 10) -> JobError:
    with pytest.raises(JobError) as caught:
        await events(client, timeout_s)
    return caught.value


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
async def test_lines_are_whole_wherever_they_were_cut(size: int) -> None:
    text = "".join(f'{{"n": {n}}}\n' for n in range(50)) + "unfinished"

    async def chunks() -> AsyncIterator[str]:
        for start in range(0, len(text), size):
            yield text[start : start + size]

    assert [line async for line in frame_lines(chunks())] == text.split("\n")[:-1]


async def test_events_come_in_order_and_a_job_that_ended_is_not_cancelled() -> None:
    gateway, runner = client(QUEUED[:5], QUEUED[5:] + DONE[:9], DONE[9:])
    first, last = await events(gateway)
    assert isinstance(first, Queued)
    assert isinstance(last, Done)
    assert last.result == RESULT
    await gateway.close()
    assert not runner.cancels


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (aiohttp.ClientConnectionError(), ErrorKind.UNAVAILABLE),
        (aiohttp.ClientPayloadError(), ErrorKind.UNAVAILABLE),
        (ConnectionResetError(), ErrorKind.UNAVAILABLE),
        (FileNotFoundError(), ErrorKind.UNAVAILABLE),
        (TimeoutError(), ErrorKind.UNAVAILABLE),
        (ServiceUnavailable("secret"), ErrorKind.UNAVAILABLE),
        (BentoMLException("secret"), ErrorKind.UNAVAILABLE),
        (BentoMLException("secret", error_code=429), ErrorKind.OVERLOADED),  # pyright: ignore[reportArgumentType] - as an int too
        (BentoMLException("secret", error_code=400), ErrorKind.INTERNAL),  # pyright: ignore[reportArgumentType]
    ],
)
@pytest.mark.parametrize("before", [(), (QUEUED,)])
async def test_a_broken_stream_is_our_own_error(
    error: Exception, kind: ErrorKind, before: tuple[str, ...]
) -> None:
    gateway, _ = client(*before, error)
    caught = await failure(gateway)
    assert caught.kind is kind
    assert "secret" not in caught.message
    if kind is ErrorKind.UNAVAILABLE:
        assert caught.retry_after_s == OPTIONS.restart_retry_after_s
    await gateway.close()


@pytest.mark.parametrize("steps", [(), (QUEUED,), (QUEUED, DONE[:-1]), ("{}\n",), ("nonsense\n",)])
async def test_a_stream_without_a_proper_end_is_an_error(steps: tuple[str, ...]) -> None:
    gateway, _ = client(*steps)
    assert (await failure(gateway)).kind is ErrorKind.INTERNAL
    await gateway.close()


@pytest.mark.parametrize(
    ("steps", "kind"),
    [
        ((aiohttp.ClientConnectionError(),), ErrorKind.UNAVAILABLE),
        ((BentoMLException("secret", error_code=429),), ErrorKind.OVERLOADED),  # pyright: ignore[reportArgumentType]
        (("nonsense\n",), ErrorKind.INTERNAL),
        ((60.0,), ErrorKind.TIMEOUT),
    ],
)
async def test_a_whole_call_that_breaks_is_our_own_error(
    steps: tuple[str | float | Exception, ...], kind: ErrorKind
) -> None:
    gateway, _ = client(*steps)
    with pytest.raises(JobError) as caught:
        async for _ in gateway.run(EmbedJob(id="a", timeout_s=0.05, texts=("x",))):
            pass
    assert caught.value.kind is kind
    assert "secret" not in caught.value.message
    await gateway.close()


async def test_a_whole_call_tells_its_wait_with_what_gathering_took() -> None:
    done = encode_event(
        Done(result=EmbedResult(model="m", vectors=(), tokens=()), queue_ms=1.0, total_ms=5.0)
    )
    gateway, _ = client(0.03, done)
    (end,) = [event async for event in gateway.run(EmbedJob(id="a", timeout_s=5, texts=("x",)))]
    assert isinstance(end, Done)
    assert end.total_ms >= 30
    assert end.total_ms - end.queue_ms == pytest.approx(4.0)
    await gateway.close()


async def test_a_runner_that_is_gone_is_noticed_and_its_return_too() -> None:
    gateway, runner = client(60.0)
    both = asyncio.gather(failure(gateway), failure(gateway))
    await until(lambda: gateway.in_flight == 2)
    runner.die()
    async with asyncio.timeout(1.0):
        assert [error.kind for error in await both] == [ErrorKind.UNAVAILABLE] * 2
    assert (await gateway.state())["state"] == "down"
    runner.steps = (DONE,)
    assert (await failure(gateway)).code == "runner_unavailable"  # at once: nothing is sent to it
    runner.come_back()
    await until(lambda: not gateway.is_gone)
    assert len(await events(gateway)) == 1
    assert (await gateway.state())["state"] == "ready"
    await gateway.close()


async def test_a_runner_that_falls_silent_is_gone_too() -> None:
    gateway, runner = client(60.0)

    async def one_beat() -> AsyncGenerator[str, None]:
        yield "\n"
        await asyncio.sleep(60)

    runner.watch = one_beat
    async with asyncio.timeout(2.0):
        assert (await failure(gateway)).kind is ErrorKind.UNAVAILABLE
    await gateway.close()


async def test_a_slow_runner_is_not_taken_for_gone() -> None:
    gateway, runner = client(0.5, DONE)
    waiting = asyncio.ensure_future(events(gateway))
    await until(lambda: gateway.in_flight == 1)
    runner.alive.clear()  # it does not say how it is
    assert (await gateway.state())["state"] == "loading"
    assert len(await waiting) == 1
    await gateway.close()


async def test_a_runner_that_was_never_there_is_unavailable_soon() -> None:
    gateway, runner = client(DONE)
    runner.alive.clear()
    async with asyncio.timeout(1.0):
        assert (await failure(gateway)).kind is ErrorKind.UNAVAILABLE
    await gateway.close()


async def test_the_deadline_is_kept_here_too() -> None:
    for steps in [(60.0,), (QUEUED, 60.0)]:
        gateway, runner = client(*steps)
        async with asyncio.timeout(1.0):
            error = await failure(gateway, timeout_s=0.2)
        assert (error.kind, error.code) == (ErrorKind.TIMEOUT, "deadline_exceeded")
        await until(lambda runner=runner: runner.cancels == ["j1"])
        await gateway.close()


async def test_work_that_does_not_get_on_is_ended_and_what_waits_is_not() -> None:
    gateway, runner = client(DELTA, 60.0)
    async with asyncio.timeout(2.0):
        error = await failure(gateway)
    assert (error.kind, error.code) == (ErrorKind.TIMEOUT, "stalled")
    await until(lambda: runner.cancels == ["j1"])
    await gateway.close()
    gateway, _ = client(QUEUED, 2 * OPTIONS.stall_s, DELTA, DONE)
    assert len(await events(gateway)) == 3
    await gateway.close()


async def test_an_early_end_cancels_until_the_runner_knows_the_job() -> None:
    gateway, runner = client(QUEUED, 60.0)
    runner.knows_after = 2  # the cancel overtook the job twice
    stream = gateway.run(job())
    await anext(stream)
    await stream.aclose()
    await until(lambda: len(runner.cancels) == 3)
    await gateway.close()


async def test_a_full_queue_is_not_asked_again_at_once() -> None:
    full = Failed(error=ErrorKind.OVERLOADED, message="full", code="queue_full", retry_after_s=7)
    gateway, runner = client(encode_event(full))
    for _ in range(3):
        error = await failure(gateway)
        assert (error.kind, error.code, error.retry_after_s) == (ErrorKind.OVERLOADED, "queue_full", 7)
    assert runner.runs == 1
    with pytest.raises(JobError):
        [_ async for _ in gateway.run(replace(job(), account="another"))]
    assert runner.runs == 2, "another account may still have room"
    runner.steps = (DONE,)
    async with asyncio.timeout(5):
        while True:
            with contextlib.suppress(JobError):
                await events(gateway)
                break
            await asyncio.sleep(0.01)
    await gateway.close()


async def test_no_more_jobs_than_connections() -> None:
    gateway, _ = client(QUEUED, 60.0)
    waiting = [gateway.run(job()) for _ in range(2)]
    for stream in waiting:
        await anext(stream)
    error = await failure(gateway)
    assert (error.kind, error.code, error.retry_after_s) == (ErrorKind.OVERLOADED, "queue_full", 1)
    await waiting[0].aclose()
    third = gateway.run(job())
    await anext(third)
    for stream in (waiting[1], third):
        await stream.aclose()
    await gateway.close()


# --- several processes --------------------------------------------------------------------------------------


class Elsewhere(Remotes):
    """Scripted runners by their address; more may come, and some go."""

    def __init__(self, **runners: ScriptedRunner) -> None:
        super().__init__([], None)
        self.runners: dict[str, Any] = dict(runners)

    def known(self) -> Mapping[str, Any]:
        return dict(self.runners)


MADE = encode_event(TextDelta(text="a"))


def several(*scripts: tuple[str | float | Exception, ...]) -> tuple[RunnerClient, list[ScriptedRunner]]:
    runners = [ScriptedRunner(*steps) for steps in scripts]
    places = {f"r{number}": runner for number, runner in enumerate(runners)}
    return RunnerClient("text", Elsewhere(**places), OPTIONS), runners


def failed(kind: ErrorKind, code: str) -> str:
    return encode_event(Failed(error=kind, message="It is so.", code=code))


@pytest.mark.parametrize(
    "first",
    [
        (aiohttp.ClientConnectionError(),),
        (QUEUED, aiohttp.ClientPayloadError()),
        (QUEUED,),
        (failed(ErrorKind.UNAVAILABLE, "version_mismatch"),),
        (failed(ErrorKind.OVERLOADED, "queue_full"),),
    ],
)
async def test_a_job_that_has_made_nothing_goes_to_another_process(
    first: tuple[str | float | Exception, ...],
) -> None:
    gateway, runners = several(first, (QUEUED, MADE, DONE))
    told = await events(gateway)
    assert [type(event) for event in told[-2:]] == [TextDelta, Done]
    assert [runner.runs for runner in runners] == [1, 1]
    await gateway.close()


@pytest.mark.parametrize(
    "first",
    [
        (MADE, aiohttp.ClientPayloadError()),
        (failed(ErrorKind.INVALID, "out_of_bounds"),),
        (failed(ErrorKind.OVERLOADED, "insufficient_quota"),),
    ],
)
async def test_a_job_that_has_made_something_or_is_wrong_does_not(
    first: tuple[str | float | Exception, ...],
) -> None:
    gateway, runners = several(first, (DONE,))
    await failure(gateway)
    assert [runner.runs for runner in runners] == [1, 0]
    await gateway.close()


async def test_a_job_that_all_refuse_fails_once_for_all() -> None:
    refused = (failed(ErrorKind.UNAVAILABLE, "runner_not_ready"),)
    gateway, runners = several(refused, refused, refused)
    assert (await failure(gateway)).code == "runner_not_ready"
    assert [runner.runs for runner in runners] == [1, 1, 1]
    await gateway.close()


async def test_jobs_go_where_the_fewest_are() -> None:
    gateway, runners = several((0.3, DONE), (0.3, DONE), (0.3, DONE))
    await asyncio.gather(*(events(gateway) for _ in range(6)))
    assert [runner.runs for runner in runners] == [2, 2, 2]
    await gateway.close()


async def test_processes_come_and_go() -> None:
    first, second = ScriptedRunner(DONE), ScriptedRunner(DONE)
    places = Elsewhere(first=first)
    gateway = RunnerClient("text", places, OPTIONS)
    await events(gateway)
    places.runners = {"second": second}
    await events(gateway)
    assert (first.runs, second.runs) == (1, 1)
    assert len(gateway.links) == 1
    await gateway.close()


async def test_a_runner_is_ready_when_one_of_its_processes_is() -> None:
    gateway, (first, second) = several((60.0,), (DONE,))
    assert (await gateway.state())["state"] == "ready"
    waiting = asyncio.gather(failure(gateway))  # it opens the watch on the first
    await until(lambda: gateway.in_flight == 1)
    first.die()
    second.alive.clear()
    async with asyncio.timeout(5):
        while (await gateway.state())["why"] == "":
            await asyncio.sleep(0.01)
    told = await gateway.state()
    assert told["why"].startswith(("0 of 2", "1 of 2"))
    second.alive.set()
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    await gateway.close()


async def test_a_name_stands_for_each_of_its_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    def found(*_: Any, **__: Any) -> list[Any]:
        return [(socket.AF_INET, 1, 6, "", (host, 3000)) for host in ("10.0.0.2", "10.0.0.1", "10.0.0.2")]

    monkeypatch.setattr(socket, "getaddrinfo", found)
    assert await addresses("http://runners:3000") == ["http://10.0.0.1:3000", "http://10.0.0.2:3000"]
    assert await addresses("https://runners:3000") == ["https://runners:3000"]
    assert await addresses("http://10.0.0.9:3000") == ["http://10.0.0.9:3000"]
