"""Several jobs of one request, each on its own: all their results, or their events as they come."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from gateway.answers import last_event
from gateway.runners import RunnerClient
from gateway.schemas import MAX_SEED
from jobs import Done, Event, Job


def numbered(job_id: str, seed: int, count: int) -> list[tuple[str, int]]:
    """An id and a seed for each of `count` jobs, the first as given; after the largest seed comes 0."""
    return [(f"{job_id}-{i}" if i else job_id, (seed + i) % (MAX_SEED + 1)) for i in range(count)]


async def all_done(jobs: Sequence[Job], runner: RunnerClient) -> list[Done]:
    """When one job fails the others are cancelled. Raises `JobError`."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(last_event(runner.run(job))) for job in jobs]
    except ExceptionGroup as failed:
        raise failed.exceptions[0] from None
    return [task.result() for task in tasks]


async def merged(jobs: Sequence[Job], runner: RunnerClient) -> AsyncGenerator[tuple[int, Event], None]:
    """The events of all jobs as they come, each with its job's place. Raises the first failure."""
    if len(jobs) == 1:
        async with aclosing(runner.run(jobs[0])) as events:
            async for event in events:
                yield 0, event
        return
    # One place: a reader who is slow holds the runner's events back, as with a single job.
    arrived: asyncio.Queue[tuple[int, Event] | Exception] = asyncio.Queue(1)

    async def forward(index: int, job: Job) -> None:
        try:
            async with aclosing(runner.run(job)) as events:
                async for event in events:
                    await arrived.put((index, event))
        except Exception as error:  # noqa: BLE001 - raised again, where it is awaited
            await arrived.put(error)

    tasks = [asyncio.create_task(forward(index, job)) for index, job in enumerate(jobs)]
    try:
        unfinished = len(tasks)
        while unfinished:
            item = await arrived.get()
            if isinstance(item, Exception):
                raise item
            yield item
            unfinished -= isinstance(item[1], Done)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
