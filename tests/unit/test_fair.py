"""Accounts share the engine's queue evenly."""

from __future__ import annotations

import pytest

from jobs import JobError, TextJob
from runners.fair import Turns
from tests.unit.fake_model import FakeModel
from tests.unit.test_engine import engine_of, last_of, until


def job(id: str, account: str = "", max_tokens: int = 4) -> TextJob:
    return TextJob(
        id=id, account=account, timeout_s=30, seed=0, prompt="a", max_tokens=max_tokens, temperature=0
    )


def order(turns: Turns, jobs: list[TextJob]) -> list[str]:
    tagged = [(turns.enter(each), place, each.id) for place, each in enumerate(jobs)]
    return [id for _, _, id in sorted(tagged)]


def test_alone_it_is_first_come_first_served() -> None:
    jobs = [job(str(number), "ann", max_tokens=9 - number) for number in range(5)]
    assert order(Turns(), jobs) == ["0", "1", "2", "3", "4"]


def test_who_sent_one_does_not_wait_for_who_sent_many() -> None:
    many = [job(f"a{number}", "ann") for number in range(6)]
    assert order(Turns(), [*many, job("b0", "bob"), job("b1", "bob")])[:4] == ["a0", "b0", "a1", "b1"]


def test_who_asks_for_much_waits_longer() -> None:
    jobs = [job("a0", "ann", 40), job("a1", "ann", 40), *(job(f"b{n}", "bob", 10) for n in range(4))]
    assert order(Turns(), jobs) == ["a0", "b0", "b1", "b2", "b3", "a1"]


def test_an_idle_account_saves_nothing_up() -> None:
    turns = Turns()
    for number in range(10):
        each = job(str(number), "ann")
        turns.leave(each, turns.enter(each), admitted=True)
    late = job("b", "bob")
    assert turns.enter(late) >= 36
    assert turns.enter(job("a", "ann")) == 40


async def test_the_engine_admits_in_turn_and_keeps_room_for_others() -> None:
    model = FakeModel(slots=0)
    async with engine_of(model, queue_size=8) as engine:
        for number in range(4):
            engine.submit(job(f"a{number}", "ann"))
            await until(lambda number=number: f"a{number}" in model.rows)
        with pytest.raises(JobError, match="part of the queue"):
            engine.submit(job("a4", "ann"))
        last = engine.submit(job("b", "bob"))
        await until(lambda: "b" in model.rows)
        model.slots = 1
        engine.cancel("a3")  # the engine looks again when something happens
        await last_of(last)
        done = [ids[0] for _, ids in model.log]
        assert done.index("b") < [*done, "a1"].index("a1")
