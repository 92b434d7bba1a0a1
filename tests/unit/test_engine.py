"""The engine's promises, each watched on a model that only counts."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from jobs import Done, ErrorKind, Event, Failed, JobError, Queued, TextDelta, TextJob, TextResult
from runners.engine import Engine
from runners.metrics import EngineMetrics
from runners.stream import Stream
from tests.unit.fake_model import FakeModel


def job(job_id: str, *, steps: int = 3, prompt: str = "decode", timeout_s: float = 30) -> TextJob:
    return TextJob(
        id=job_id, timeout_s=timeout_s, seed=0, prompt=prompt, max_tokens=steps, temperature=0, stream=True
    )


@asynccontextmanager
async def engine_of(*models: Any, **options: Any) -> AsyncGenerator[Engine]:
    registry = options.pop("registry", None) or CollectorRegistry()
    engine = Engine({model.name: model for model in models}, EngineMetrics("text", registry), **options)
    engine.start()
    try:
        yield engine
    finally:
        for model in models:
            if model.gate is not None:
                model.gate.release(10_000)
        await asyncio.to_thread(engine.close)


async def events_of(stream: Stream) -> list[Event]:
    return [event async for event in stream]


async def last_of(stream: Stream) -> Done | Failed:
    last = (await events_of(stream))[-1]
    assert isinstance(last, Done | Failed)
    return last


async def until(condition: Callable[[], bool]) -> None:
    """Waits for what another thread brings about; the test's own timeout is the bound."""
    while not condition():
        await asyncio.sleep(0.001)


def text_of(event: Event) -> str:
    assert isinstance(event, Done), event
    assert isinstance(event.result, TextResult)
    return event.result.text


async def test_rows_join_and_leave_between_steps() -> None:
    model = FakeModel(gate=threading.Semaphore(0))
    assert model.gate is not None
    async with engine_of(model) as engine:
        long = engine.submit(job("long", steps=4))
        model.gate.release()
        await until(lambda: model.log == [("decode", ["long"])])
        short = engine.submit(job("short", steps=1))
        await until(lambda: "short" in model.rows)
        model.gate.release(10)
        assert [text_of(await last_of(stream)) for stream in (short, long)] == ["short", "long"]
    companies = [ids for _, ids in model.log]
    assert sorted(companies[1] + companies[2]) in (["long", "long", "short"], ["long", "long", "short"])
    assert companies[-1] == ["long"]
    assert len(companies) == 4


async def test_no_lane_starves_under_constant_load_of_another() -> None:
    model = FakeModel(slots=100, step_s=0.002)
    async with engine_of(model) as engine:
        crowd = [engine.submit(job(f"crowd{i}", steps=60, prompt="crowded")) for i in range(40)]
        readers = [asyncio.create_task(events_of(stream)) for stream in crowd]
        await until(lambda: len(model.log) > 20)
        started = len(model.log)
        assert text_of(await last_of(engine.submit(job("lonely", steps=5, prompt="quiet")))) == "lonely"
        turns = [stage for stage, _ in model.log[started:]]
        last = len(turns) - turns[::-1].index("quiet")
        assert turns[:last].count("crowded") > 0, "the crowd was starved"
        assert last < 150, "the lonely row waited for the crowd to end"
        for reader in readers:
            await reader


async def test_a_cancelled_row_is_gone_at_the_next_step_and_released_once() -> None:
    model = FakeModel(gate=threading.Semaphore(0))
    assert model.gate is not None
    async with engine_of(model) as engine:
        victim, other = engine.submit(job("victim", steps=50)), engine.submit(job("other", steps=3))
        await until(lambda: len(model.rows) == 2)
        model.gate.release()
        await until(lambda: len(model.log) == 1)
        assert engine.cancel("victim")
        model.gate.release(100)
        last = await last_of(victim)
        assert isinstance(last, Failed)
        assert last.error is ErrorKind.CANCELLED
        assert text_of(await last_of(other)) == "other"
        assert not engine.cancel("victim")
    assert sum("victim" in ids for _, ids in model.log) <= 2
    assert model.rows["victim"].released == 1
    assert model.rows["other"].released == 1


async def test_a_row_that_raises_fails_alone() -> None:
    model = FakeModel()
    async with engine_of(model) as engine:
        good = [engine.submit(job(f"good{i}")) for i in range(7)]
        bad = engine.submit(job("bad", prompt="decode poison"))
        failure = await last_of(bad)
        assert isinstance(failure, Failed)
        assert failure.error is ErrorKind.INTERNAL
        assert "poison" not in failure.message
        assert [text_of(await last_of(stream)) for stream in good] == [f"good{i}" for i in range(7)]
    assert model.slots == 8
    assert all(row.released == 1 for row in model.rows.values())


async def test_a_row_that_says_why_it_cannot_go_on_is_heard() -> None:
    model = FakeModel()
    async with engine_of(model) as engine:
        good = engine.submit(job("good"))
        failure = await last_of(engine.submit(job("bad", prompt="decode mute")))
        assert isinstance(failure, Failed)
        assert failure.message == "a row without a sound"
        assert text_of(await last_of(good)) == "good"


async def test_a_step_without_memory_is_split_to_the_same_result() -> None:
    model = FakeModel(memory=3, gate=threading.Semaphore(0))
    assert model.gate is not None
    async with engine_of(model) as engine:
        streams = [engine.submit(job(f"row{i}", steps=4)) for i in range(8)]
        await until(lambda: len(model.rows) == 8)
        model.gate.release(1000)
        for i, stream in enumerate(streams):
            events = await events_of(stream)
            assert [event.text for event in events if isinstance(event, TextDelta)] == [
                f"row{i}:{step}" for step in (1, 2, 3, 4)
            ]
    sizes = [len(ids) for _, ids in model.log]
    assert sum(size > 3 for size in sizes) <= 3, "the engine kept trying what did not fit"


async def test_a_row_that_waits_for_memory_blocks_nobody() -> None:
    model = FakeModel(slots=1, gate=threading.Semaphore(0))
    assert model.gate is not None
    async with engine_of(model) as engine:
        large = engine.submit(job("large", prompt="decode large"))
        await until(lambda: "large" in model.rows)
        small = engine.submit(job("small"))
        model.gate.release(100)
        assert text_of(await last_of(small)) == "small"
        assert engine.cancel("large")
        assert isinstance(await last_of(large), Failed)


async def test_a_slow_reader_slows_nobody() -> None:
    model = FakeModel()
    async with engine_of(model, buffer_size=4) as engine:
        slow = engine.submit(job("slow", steps=40))
        assert text_of(await last_of(engine.submit(job("quick", steps=40)))) == "quick"
        assert model.rows["slow"].steps <= 5, "the engine ran ahead of the reader"
        assert text_of(await last_of(slow)) == "slow"
    assert model.rows["slow"].steps == 40


async def test_a_reader_that_never_comes_loses_its_row_at_the_deadline() -> None:
    model = FakeModel()
    async with engine_of(model, buffer_size=4) as engine:
        engine.submit(job("gone", steps=40, timeout_s=0.2))
        await until(lambda: "gone" in model.rows and model.rows["gone"].released == 1)
    assert model.slots == 8


async def test_a_late_row_is_told_so_and_its_work_stops() -> None:
    model = FakeModel(gate=threading.Semaphore(2))
    async with engine_of(model) as engine:
        stream = engine.submit(job("late", steps=50, timeout_s=0.3))
        await until(lambda: len(model.log) == 2)
        assert model.gate is not None
        reader = asyncio.create_task(last_of(stream))
        await asyncio.to_thread(threading.Event().wait, 0.35)
        model.gate.release(100)
        last = await reader
        assert isinstance(last, Failed)
        assert last.error is ErrorKind.TIMEOUT
    assert len(model.log) <= 4


async def test_results_never_cross() -> None:
    model = FakeModel(slots=5)
    async with engine_of(model, queue_size=200) as engine:
        streams = {
            f"job{i}": engine.submit(job(f"job{i}", steps=i % 7 + 1, prompt=f"lane{i % 3}"))
            for i in range(120)
        }
        for name, stream in streams.items():
            events = await events_of(stream)
            deltas = [event.text for event in events if isinstance(event, TextDelta)]
            assert deltas == [f"{name}:{step + 1}" for step in range(len(deltas))]
            assert text_of(events[-1]) == name


async def test_the_queue_refuses_at_its_bound_at_once() -> None:
    model = FakeModel(slots=0)
    registry = CollectorRegistry()
    async with engine_of(model, queue_size=3, registry=registry) as engine:
        streams = [engine.submit(job(f"waits{i}")) for i in range(3)]
        with pytest.raises(JobError) as refused:
            engine.submit(job("refused"))
        assert refused.value.kind is ErrorKind.OVERLOADED
        assert refused.value.retry_after_s is not None
        assert refused.value.retry_after_s >= 1
        assert engine.cancel("waits0")
        assert isinstance(await last_of(streams[0]), Failed)
        engine.submit(job("fits again"))
    assert _rows(registry, "refused") == 1
    assert _rows(registry, "cancelled") == 4


async def test_positions_in_the_queue_count_down() -> None:
    model = FakeModel(slots=0)
    async with engine_of(model) as engine:
        first = engine.submit(job("first"))
        await until(lambda: "first" in model.rows)
        second = aiter(engine.submit(job("second")))
        assert await anext(second) == Queued(position=1, wait_s=1.0)
        engine.cancel("first")
        await last_of(first)
        model.slots = 1
        engine.submit(job("third"))  # the engine looks again when something happens
        assert isinstance([event async for event in second][-1], Done)


async def test_it_drains() -> None:
    model = FakeModel(gate=threading.Semaphore(0))
    assert model.gate is not None
    async with engine_of(model) as engine:
        stream = engine.submit(job("running"))
        await until(lambda: "running" in model.rows)
        drained = asyncio.create_task(asyncio.to_thread(engine.drain, 30))
        await until(lambda: _refuses(engine))
        model.gate.release(100)
        assert text_of(await last_of(stream)) == "running"
        assert await drained


async def test_a_bad_job_and_an_unknown_model_are_refused_with_their_field() -> None:
    async with engine_of(FakeModel()) as engine:
        failure = await last_of(engine.submit(job("bad", prompt="refuse")))
        assert failure == Failed(error=ErrorKind.INVALID, message="no", param="prompt")
        with pytest.raises(JobError) as unknown:
            engine.submit(TextJob(id="x", model="nope", timeout_s=1, seed=0, max_tokens=1, temperature=0))
        assert (unknown.value.kind, unknown.value.param) == (ErrorKind.NOT_FOUND, "model")
        assert "fake" in unknown.value.message


async def test_two_models_share_the_engine() -> None:
    one, two = FakeModel(name="one"), FakeModel(name="two")
    async with engine_of(one, two) as engine:
        chosen = TextJob(
            id="b", model="two", timeout_s=9, seed=0, prompt="decode", max_tokens=2, temperature=0
        )
        streams = engine.submit(job("a")), engine.submit(chosen)
        assert [text_of(await last_of(stream)) for stream in streams] == ["a", "b"]
    assert list(one.rows) == ["a"]
    assert list(two.rows) == ["b"]


async def test_counters_tell_queue_work_and_outcomes() -> None:
    registry = CollectorRegistry()
    model = FakeModel()
    async with engine_of(model, registry=registry) as engine:
        await last_of(engine.submit(job("good")))
        await last_of(engine.submit(job("bad", prompt="refuse")))
    assert _rows(registry, "done") == 1
    assert _rows(registry, "failed") == 1
    labels = {"modality": "text", "lane": "decode"}
    assert registry.get_sample_value("triptych_queue_seconds_count", {"modality": "text"}) == 1
    assert registry.get_sample_value("triptych_step_seconds_count", labels) == 3
    assert registry.get_sample_value("triptych_rows_per_step_sum", labels) == 3
    assert registry.get_sample_value("triptych_queue_depth", {"modality": "text", "replica": "1"}) == 0


async def test_a_failing_engine_says_so() -> None:
    class Broken(FakeModel):
        def lane(self, row: Any) -> None:
            raise RuntimeError("lane must not raise")

    crashed = threading.Event()
    model = Broken()
    engine = Engine(
        {"fake": model}, EngineMetrics("text", CollectorRegistry()), on_crash=crashed.set, finish_threads=1
    )
    engine.start()
    engine.submit(job("a"))
    assert await asyncio.to_thread(crashed.wait, 30)


def _rows(registry: CollectorRegistry, outcome: str) -> float | None:
    return registry.get_sample_value("triptych_rows_total", {"modality": "text", "outcome": outcome})


def _refuses(engine: Engine) -> bool:
    try:
        engine.submit(job("too late", timeout_s=0.01))
    except JobError as error:
        return error.kind is ErrorKind.UNAVAILABLE
    return False
