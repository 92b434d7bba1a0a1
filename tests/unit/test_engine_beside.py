"""Lanes whose steps run on a second thread, next to those of the engine's own."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from jobs import ErrorKind, Event, Failed
from models.protocol import Lane
from tests.unit.fake_model import FakeModel, FakeRow
from tests.unit.test_engine import engine_of, job, last_of, text_of, until


@dataclass
class TwoThreads(FakeModel):
    """Its lane `aside` may run beside the others; `gates` holds a lane's steps up, a permit each."""

    gates: dict[str, threading.Semaphore] = field(default_factory=dict)
    at_once: int = 0
    most_at_once: int = 0
    companies: list[tuple[str, str]] = field(default_factory=list)
    """Lane and thread of each step that has begun."""

    def lane(self, row: FakeRow) -> Lane | None:
        lane = super().lane(row)
        return lane and replace(lane, beside=lane.stage == "aside")

    def step(self, lane: Lane, rows: Sequence[FakeRow]) -> list[list[Event]]:
        self.companies.append((lane.stage, threading.current_thread().name))
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        if (gate := self.gates.get(lane.stage)) is not None:
            assert gate.acquire(timeout=30)
        self.at_once -= 1
        return super().step(lane, rows)


async def test_a_step_beside_goes_on_while_another_lanes_is_at_work() -> None:
    model = TwoThreads(gates={"decode": threading.Semaphore(0)})
    async with engine_of(model) as engine:
        held = engine.submit(job("held", steps=1))
        await until(lambda: len(model.companies) == 1)
        aside = engine.submit(job("aside", steps=1, prompt="aside"))
        model.gates["decode"].release()
        assert text_of(await last_of(held)) == "held"
        assert text_of(await last_of(aside)) == "aside"
        # A crowd in both lanes: they run at the same time, each on its own thread.
        model.gates["decode"].release(20)
        crowd = [
            engine.submit(job(f"{lane}{i}", steps=3, prompt=lane))
            for lane in ("decode", "aside")
            for i in (1, 2)
        ]
        for stream in crowd:
            text_of(await last_of(stream))
    assert {thread for lane, thread in model.companies if lane == "decode"} == {"engine"}
    assert any(thread != "engine" for lane, thread in model.companies if lane == "aside")


async def test_the_engine_steps_its_own_lanes_while_the_second_thread_is_busy() -> None:
    model = TwoThreads(gates={"aside": threading.Semaphore(0)})
    async with engine_of(model) as engine:
        aside = engine.submit(job("aside", steps=1, prompt="aside"))
        await until(lambda: model.at_once == 1)
        assert text_of(await last_of(engine.submit(job("decode", steps=5)))) == "decode"
        assert model.most_at_once == 2
        model.gates["aside"].release()
        assert text_of(await last_of(aside)) == "aside"


async def test_a_row_that_is_cancelled_beside_is_released_once_when_it_is_back() -> None:
    model = TwoThreads(gates={"aside": threading.Semaphore(0)})
    async with engine_of(model) as engine:
        victim = engine.submit(job("victim", steps=50, prompt="aside"))
        await until(lambda: model.at_once == 1)
        assert engine.cancel("victim")
        last = await last_of(victim)
        assert isinstance(last, Failed)
        assert last.error is ErrorKind.CANCELLED
        assert model.rows["victim"].released == 0, "it was released under the step's feet"
        model.gates["aside"].release()
        await until(lambda: model.rows["victim"].released == 1)
        assert [ids for _, ids in model.log] == [["victim"]]
    assert model.rows["victim"].released == 1


async def test_a_row_that_raises_beside_fails_alone() -> None:
    model = TwoThreads()
    async with engine_of(model) as engine:
        good = [engine.submit(job(f"good{i}", prompt="aside")) for i in range(5)]
        bad = engine.submit(job("bad", prompt="aside poison"))
        last = await last_of(bad)
        assert isinstance(last, Failed)
        assert last.error is ErrorKind.INTERNAL
        assert [text_of(await last_of(stream)) for stream in good] == [f"good{i}" for i in range(5)]


async def test_steps_beside_that_run_out_of_memory_go_on_with_fewer_rows() -> None:
    model = TwoThreads(memory=2)
    async with engine_of(model) as engine:
        crowd = [engine.submit(job(f"row{i}", prompt="aside", steps=4)) for i in range(6)]
        assert [text_of(await last_of(stream)) for stream in crowd] == [f"row{i}" for i in range(6)]


async def test_closing_waits_for_the_step_beside() -> None:
    model = TwoThreads(gates={"aside": threading.Semaphore(0)})
    async with engine_of(model) as engine:
        victim = engine.submit(job("victim", steps=3, prompt="aside"))
        await until(lambda: model.at_once == 1)
        closing = threading.Thread(target=engine.close)
        closing.start()
        last = await last_of(victim)
        assert isinstance(last, Failed)
        assert last.error is ErrorKind.UNAVAILABLE
        assert closing.is_alive()
        model.gates["aside"].release(3)
        closing.join(timeout=30)
        assert not closing.is_alive()
    assert model.rows["victim"].released == 1
