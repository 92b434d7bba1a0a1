"""Which models are in memory: loaded once, one at a time, within a budget, least recently used out."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator
from concurrent.futures import ThreadPoolExecutor

import pytest
import pytest_asyncio
from prometheus_client import CollectorRegistry

from jobs import Done, ErrorKind, Event, Failed, JobError, Queued, TextJob
from models.catalog import Entry
from models.loading import weight_bytes
from runners import residency
from runners.engine import Engine
from runners.metrics import EngineMetrics
from runners.residency import Place, Residency
from runners.stream import Stream
from tests.unit.fake_model import FakeModel

Gate = threading.Semaphore | None


class Shelf:
    """Models of size 1 that note when they are loaded; with a `gate` each load waits for one permit."""

    def __init__(
        self, *names: str, budget: int | None = None, gate: threading.Semaphore | None = None
    ) -> None:
        self.loads: list[str] = []
        self.at_once = 0
        self.most_at_once = 0
        self.gate = gate
        self.freed = 0
        self.places = {name: Place(load=lambda name=name: self.load(name), size_bytes=1) for name in names}
        self.models = Residency(self.places, budget_bytes=budget, freed=self.on_freed)

    def on_freed(self) -> None:
        self.freed += 1

    def load(self, name: str) -> FakeModel:
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        self.loads.append(name)
        if self.gate is not None:
            assert self.gate.acquire(timeout=30)
        self.at_once -= 1
        if name == "broken":
            raise OSError("no such file")
        return FakeModel(name=name)

    def use(self, name: str, keep_alive_s: float | None = None) -> None:
        self.models.borrow(name)
        self.models.give_back(name, keep_alive_s)

    @property
    def resident(self) -> list[str]:
        return [each["name"] for each in self.models.resident()]


def test_the_least_recently_used_leaves_when_room_is_needed() -> None:
    shelf = Shelf("a", "b", "c", budget=2)
    for name in ("a", "b", "a", "c"):
        shelf.use(name)
    assert shelf.resident == ["a", "c"]
    assert shelf.freed == 1
    shelf.use("b")
    assert shelf.loads == ["a", "b", "c", "b"]


def test_a_model_in_use_stays_and_who_needs_its_room_waits() -> None:
    shelf = Shelf("a", "b", budget=1)
    shelf.models.borrow("a")
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(shelf.models.borrow, "b")
        assert shelf.resident == ["a"]
        shelf.models.give_back("a")
        assert waiting.result(timeout=30).name == "b"
    assert shelf.resident == ["b"]


def test_one_load_at_a_time_and_never_the_same_model_twice() -> None:
    gate = threading.Semaphore(0)
    shelf = Shelf("a", "b", gate=gate)
    with ThreadPoolExecutor(8) as pool:
        borrows = [pool.submit(shelf.models.borrow, name) for name in "abababab"]
        gate.release(2)
        models = [borrow.result(timeout=30) for borrow in borrows]
    assert sorted(shelf.loads) == ["a", "b"]
    assert shelf.most_at_once == 1
    assert len(set(map(id, models))) == 2


class Waiter:
    """`wanted` of a borrow that never gives up, and tells that it has looked again and again."""

    def __init__(self) -> None:
        self._looks = threading.Semaphore(0)

    def __call__(self) -> bool:
        self._looks.release()
        return True

    def has_waited(self) -> None:
        for _ in range(3):
            assert self._looks.acquire(timeout=30)


def test_who_waits_for_a_load_keeps_nobody_from_the_models_that_are_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(residency, "PATIENCE_S", 0.01)
    gate = threading.Semaphore(1)
    shelf = Shelf("a", "b", gate=gate)
    shelf.use("a")
    with ThreadPoolExecutor(3) as pool:
        waiter = Waiter()
        loading = [pool.submit(shelf.models.borrow, "b", waiter) for _ in range(2)]
        waiter.has_waited()
        assert pool.submit(shelf.models.borrow, "a").result(timeout=30).name == "a"
        gate.release()
        assert {borrow.result(timeout=30).name for borrow in loading} == {"b"}


def test_who_waits_long_for_room_goes_before_newcomers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(residency, "PATIENCE_S", 0.01)
    shelf = Shelf("a", "b", budget=1)
    shelf.models.borrow("a")
    with ThreadPoolExecutor(2) as pool:
        waiter, newcomer = Waiter(), Waiter()
        long = pool.submit(shelf.models.borrow, "b", waiter)
        waiter.has_waited()
        late = pool.submit(shelf.models.borrow, "a", newcomer)
        newcomer.has_waited()
        assert not late.done()
        shelf.models.give_back("a")
        assert long.result(timeout=30).name == "b"
        shelf.models.give_back("b")
        assert late.result(timeout=30).name == "a"
    assert shelf.loads == ["a", "b", "a"]


def test_keep_alive_is_the_jobs_or_the_catalogs() -> None:
    shelf = Shelf("a", "b")
    shelf.use("a", keep_alive_s=0)
    assert shelf.resident == []
    shelf.places["b"].keep_alive_s = 30
    shelf.use("b")
    (told,) = shelf.models.resident()
    assert 0 < told["leaves_in_s"] <= 30
    left = threading.Event()
    shelf.models = Residency(shelf.places, freed=left.set)
    shelf.use("b", keep_alive_s=0.01)
    assert left.wait(30)
    assert shelf.resident == []
    shelf.use("b", keep_alive_s=-1)
    assert shelf.models.resident()[0]["leaves_in_s"] is None


def test_what_a_job_says_of_its_stay_holds_until_it_leaves() -> None:
    shelf = Shelf("a")
    shelf.use("a", keep_alive_s=30)
    shelf.use("a")
    (told,) = shelf.models.resident()
    assert 0 < told["leaves_in_s"] <= 30
    shelf.use("a", keep_alive_s=0)
    assert shelf.resident == []
    for _ in range(2):
        shelf.use("a")
        assert shelf.models.resident()[0]["leaves_in_s"] is None
    assert shelf.loads == ["a", "a"], "who comes after does not load it each time"


def test_a_model_that_cannot_be_loaded_blocks_no_other() -> None:
    shelf = Shelf("broken", "a")
    with pytest.raises(JobError) as failed:
        shelf.models.borrow("broken")
    assert failed.value.kind is ErrorKind.UNAVAILABLE
    assert "no such file" not in failed.value.message
    shelf.use("a")
    assert shelf.resident == ["a"]


def test_a_model_larger_than_the_budget_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match="a takes 1 bytes"):
        Shelf("a", budget=0)


def test_what_fits_is_preloaded() -> None:
    shelf = Shelf("a", "b", budget=1)
    shelf.models.preload("a")
    shelf.models.preload("b")
    assert shelf.resident == ["a"]


def test_weights_are_counted_by_the_catalog_or_the_files() -> None:
    counted = {"parameters": 100, "quantizable": 80}
    entry = Entry.model_validate(
        {"family": "text.decoder", "source": "hub:a/b", "licence": "x", "memory": counted}
    )
    assert weight_bytes(entry, "cpu") == 400
    assert weight_bytes(entry, "cuda:0") == 200
    assert weight_bytes(entry.model_copy(update={"precision": "int4"}), "cpu") == 4 * 20 + 40
    shipped = Entry(family="text.decoder", source="embedded:tiny-llama", licence="x")
    assert 4 * 4_000_000 < weight_bytes(shipped, "cpu") < 4 * 16_000_000


# --- under the engine ---------------------------------------------------------------------------------------


def job(id: str, model: str, keep_alive_s: float | None = None) -> TextJob:
    return TextJob(
        id=id,
        model=model,
        timeout_s=60,
        seed=0,
        prompt="decode",
        max_tokens=2,
        temperature=0,
        keep_alive_s=keep_alive_s,
    )


@pytest_asyncio.fixture
async def waiting() -> AsyncGenerator[tuple[Engine, Shelf, threading.Semaphore]]:
    gate = threading.Semaphore(0)
    shelf = Shelf("a", "b", budget=1, gate=gate)
    engine = Engine(shelf.models, EngineMetrics("text", CollectorRegistry()))
    engine.start()
    yield engine, shelf, gate
    gate.release(10)
    await asyncio.to_thread(engine.close)


async def read(stream: Stream) -> list[Event]:
    return [event async for event in stream]


async def test_a_request_for_an_absent_model_waits_with_its_place_in_the_queue(
    waiting: tuple[Engine, Shelf, threading.Semaphore],
) -> None:
    engine, shelf, gate = waiting
    streams = [engine.submit(job(f"j{i}", name)) for i, name in enumerate("aab")]
    firsts = [await anext(aiter(stream)) for stream in streams]
    assert [first.position for first in firsts if isinstance(first, Queued)] == [0, 1, 2]
    gate.release(10)  # who comes first is not said: a may be loaded again after b
    for stream in streams:
        assert isinstance((await read(stream))[-1], Done)
    assert set(shelf.loads) == {"a", "b"}
    assert shelf.most_at_once == 1
    assert len(engine.resident()) == 1


async def test_a_cancelled_wait_ends_at_once_and_leaves_nothing_borrowed(
    waiting: tuple[Engine, Shelf, threading.Semaphore],
) -> None:
    engine, shelf, gate = waiting
    stream = engine.submit(job("gone", "a", keep_alive_s=0))
    assert engine.cancel("gone")
    last = (await read(stream))[-1]
    assert isinstance(last, Failed)
    assert last.error is ErrorKind.CANCELLED
    gate.release(10)
    assert isinstance((await read(engine.submit(job("next", "b"))))[-1], Done)
    assert shelf.places["a"].users == 0
