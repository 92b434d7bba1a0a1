"""Talks to one runner, which is one process or several: counts its jobs, chooses where each goes."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Collection, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from gateway.books import Books
from gateway.links import Link, RunnerApi
from gateway.options import GatewayOptions
from gateway.remote import Remotes
from gateway.tickets import current_ticket
from jobs import ErrorKind, Event, Job, JobError, Queued, TextJob

logger = logging.getLogger("triptych.gateway")

_ELSEWHERE = frozenset({"queue_full", "runner_broke_off"})
"""What another process of the runner may do better at, beside all that is UNAVAILABLE."""


class RunnerClient:
    """One runner's jobs. `name` is its modality. Used on one event loop; `close` it there."""

    def __init__(
        self,
        name: str,
        apis: Sequence[RunnerApi] | Remotes,
        options: GatewayOptions,
        books: Books | None = None,
    ) -> None:
        """`apis` are of its processes here, or elsewhere.

        `books` are told of every job; without them none is counted.
        """
        self.name = name
        self._books = books
        self._options = options
        self._remotes = apis if isinstance(apis, Remotes) else None
        here = () if isinstance(apis, Remotes) else apis
        self._links = {str(number): Link(name, api, options) for number, api in enumerate(here)}
        self._leaving: set[asyncio.Task[None]] = set()

    async def run(self, job: Job) -> AsyncGenerator[Event, None]:
        """The job's events, its `Done` last. Closed early, for whatever reason, it cancels the job.

        Raises `JobError`: what the runner answered, UNAVAILABLE when it is gone, OVERLOADED, TIMEOUT.
        """
        if self._books is None:
            async with aclosing(self._run(job)) as events:
                async for event in events:
                    yield event
            return
        ticket = current_ticket()
        account = ticket.key_id
        owned = replace(job, account=account, trace=ticket.trace)
        if isinstance(owned, TextJob) and account:
            owned = replace(owned, cache_salt=account)  # nobody learns another's prompts by their speed
        async with self._books.open(job) as bill, aclosing(self._run(owned)) as events:
            async for event in events:
                bill.saw(event)
                yield event

    async def _run(self, job: Job) -> AsyncGenerator[Event, None]:
        """Goes to the process with the fewest jobs, and while nothing is made yet, on to the next."""
        ends_s = time.monotonic() + job.timeout_s
        tried: list[Link] = []
        while True:
            link = self._least_loaded(tried)
            tried.append(link)
            made = False
            link.chosen += 1
            try:
                async with aclosing(link.run(job)) as events:
                    async for event in events:
                        made = made or not isinstance(event, Queued)
                        yield event
                return
            except JobError as error:
                left_s = ends_s - time.monotonic()
                elsewhere = error.kind is ErrorKind.UNAVAILABLE or error.code in _ELSEWHERE
                if made or not elsewhere or left_s <= 0 or len(tried) >= len(self.links):
                    raise
                logger.warning("a %s job goes to another process: %s", self.name, error.code)
                job = replace(job, timeout_s=left_s)
            finally:
                link.chosen -= 1

    @property
    def links(self) -> list[Link]:
        """To the runner's processes, as far as they are known now."""
        if self._remotes is None:
            return list(self._links.values())
        known = self._remotes.known()
        for url, api in known.items():
            if url not in self._links:
                self._links[url] = Link(self.name, api, self._options)
        for url in [url for url, link in self._links.items() if url not in known and not link.chosen]:
            task = asyncio.create_task(self._links.pop(url).close())
            self._leaving.add(task)
            task.add_done_callback(self._leaving.discard)
        return list(self._links.values())

    def _least_loaded(self, tried: Collection[Link]) -> Link:
        links = self.links
        fresh = [link for link in links if link not in tried] or links
        return min(fresh, key=lambda link: (link.is_gone, link.chosen))

    async def state(self) -> dict[str, str]:
        """`{"state": "ready" | "loading" | "down", "why": ...}`, within `health_timeout_s` at any rate."""
        told = await asyncio.gather(*(link.state() for link in self.links))
        order = ("ready", "loading", "down")
        best = min(told, key=lambda each: order.index(each["state"]))
        ready = sum(each["state"] == "ready" for each in told)
        if len(told) > 1 and ready < len(told):
            worst = max(told, key=lambda each: order.index(each["state"]))
            return {**best, "why": f"{ready} of {len(told)} are ready; {worst['why']}"}
        return best

    async def resident(self) -> list[dict[str, Any]]:
        """The `name`, `size_bytes` (0 where it is not known) and `leaves_in_s` of the models in its memory.

        None while it loads or is gone. Raises `JobError` when it does not say.
        """
        told = await asyncio.gather(*(link.resident() for link in self.links))
        return list({each["name"]: each for models in told for each in models}.values())

    async def voices(self) -> list[dict[str, str]]:
        """The `name`, `model` and `language` of each voice of a speech runner. Raises `JobError`."""
        return await self._least_loaded(()).voices()

    @property
    def in_flight(self) -> int:
        return sum(link.in_flight for link in self.links)

    @property
    def is_gone(self) -> bool:
        """Whether new jobs are refused because all of the runner's processes have gone."""
        return all(link.is_gone for link in self.links)

    async def close(self) -> None:
        """Ends what runs in the background."""
        await asyncio.gather(*(link.close() for link in self._links.values()), *self._leaving)
        if self._remotes is not None:
            await self._remotes.close()
