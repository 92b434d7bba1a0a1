"""Kept answers: over a restart, within their bounds of size and age."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.kept import LOST, RUNNING, Kept, Name, hash_of
from gateway.options import GatewayOptions
from gateway.sending import Captured, Work
from gateway.store import Store
from gateway.tickets import Ticket


async def _nothing(*_: object) -> None:
    """An app that is never run."""


def work(body: bytes = b"{}") -> Work:
    return Work(_nothing, {"path": "/text"}, body, Ticket("x"), GatewayOptions())


async def keep(kept: Kept, id: str, body: bytes) -> Name:
    name = Name("ann", "job", id)
    assert await kept.reserve(name, work(), hash_of(work())) is None
    await kept.finish(name, "done", Captured(200, [("content-type", "text/plain")], body))
    return name


async def test_a_result_survives_a_restart_and_what_ran_is_lost(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/folder/store.db"
    before = Store(url)
    kept = Kept(before, 1 << 20, 60)
    done = await keep(kept, "done", b"hello")
    running = Name("ann", "job", "running")
    await kept.reserve(running, work(), "hash")
    before.close()
    after = Store(url)
    kept = Kept(after, 1 << 20, 60)
    await kept.lose()
    found = await kept.find(done)
    assert found is not None
    assert found.answer == Captured(200, [("content-type", "text/plain")], b"hello")
    lost = await kept.find(running)
    assert lost is not None
    assert (lost.state, lost.answer) == (LOST, None)
    assert await kept.find(Name("bob", "job", "done")) is None
    after.close()


async def test_the_oldest_goes_first_and_what_runs_stays() -> None:
    kept = Kept(Store("sqlite://"), 1000, 60)
    running = Name("ann", "job", "running")
    await kept.reserve(running, work(), "hash")
    names = [await keep(kept, str(number), b"x" * 300) for number in range(5)]
    here = [await kept.find(name) is not None for name in names]
    assert here == [False, False, True, True, True]
    still = await kept.find(running)
    assert still is not None
    assert still.state == RUNNING


async def test_what_is_old_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = Kept(Store("sqlite://"), 1000, 60)
    name = await keep(kept, "old", b"x")
    monkeypatch.setattr("gateway.kept.time.time", lambda: 1e10)
    await keep(kept, "new", b"x")
    assert await kept.find(name) is None


def test_the_same_request_however_spelt() -> None:
    assert hash_of(work(b'{"a": 1, "b": [2]}')) == hash_of(work(b'{"b":[2],"a":1}'))
    assert hash_of(work(b'{"a": 1}')) != hash_of(work(b'{"a": 2}'))
