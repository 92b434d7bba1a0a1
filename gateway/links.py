"""The way to one process of a runner.

Sends jobs, re-frames the events, cancels what nobody waits for, and notices its death.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any, Protocol

from bentoml.exceptions import BentoMLException
from pydantic import ValidationError

from gateway.options import GatewayOptions
from gateway.remote import RemoteRunner
from gateway.watch import BROKEN, Watch
from jobs import (
    Done,
    ErrorKind,
    Event,
    Failed,
    Job,
    JobError,
    Queued,
    WholeJob,
    decode_event,
    encode_job,
)

logger = logging.getLogger("triptych.gateway")

FULL_S = 1.0
"""A queue that was full is taken for full until a job of ours has ended, or for so long. The refusals of a
crowd would cost the runner's process as much as its work: on two cores a fifth of it was lost (measured)."""
VOICES_S = 5.0
"""How long a runner may take to list its voices, or its models."""
_CANCEL_RETRIES_S = (0.0, 0.2, 1.0)
"""A cancel may overtake the job it means, which the runner does not know yet: it is sent again."""


def _now_s() -> float:
    return asyncio.get_running_loop().time()


def _with_wait(done: Done, total_ms: float) -> Done:
    """A runner does not see how long a call waited to be batched: all but its own time was waiting."""
    worked_ms = done.total_ms - done.queue_ms
    return replace(done, queue_ms=max(0.0, total_ms - worked_ms), total_ms=total_ms)


class RunnerApi(Protocol):
    """A runner as `bentoml.depends` hands it out: the service itself, or a proxy with the same methods."""

    def run(self, job: str) -> AsyncGenerator[str, None]: ...
    async def answer(self, jobs: list[str]) -> list[str]: ...  # of text runners only
    async def cancel(self, id: str) -> bool: ...
    async def state(self) -> dict[str, Any]: ...
    async def voices(self) -> list[dict[str, str]]: ...  # of speech runners only
    def watch(self) -> AsyncGenerator[str, None]: ...


async def frame_lines(chunks: AsyncIterator[str]) -> AsyncGenerator[str, None]:
    """Joins chunks cut anywhere, gives whole lines; a last piece without its newline is dropped."""
    parts: list[str] = []
    async for chunk in chunks:
        *lines, rest = chunk.split("\n")
        for line in lines:
            yield "".join((*parts, line))
            parts.clear()
        if rest:
            parts.append(rest)


@dataclass(frozen=True, slots=True)
class _Full:
    until_s: float
    in_flight: int
    """Of this gateway, besides the job that was refused."""
    failed: Failed


class Link:
    """`name` is the runner's modality. Used on one event loop; `close` it there."""

    def __init__(self, name: str, api: RunnerApi, options: GatewayOptions) -> None:
        self.name = name
        self._api = api
        self._options = options
        self.in_flight = 0
        self.chosen = 0
        """Jobs that its owner gave it: `in_flight`, and those that wait for the process to be there."""
        self._full: dict[str, _Full] = {}
        self._last_state: dict[str, str] = {}
        self._watched: Watch | None = None
        self._background: set[asyncio.Task[None]] = set()

    async def run(self, job: Job) -> AsyncGenerator[Event, None]:
        """The job's events, its `Done` last. Closed early, for whatever reason, it cancels the job.

        Raises `JobError`: what the runner answered, UNAVAILABLE when it is gone, OVERLOADED, TIMEOUT.
        """
        self._refuse_as_before(job.account)
        await self._admit()
        self.in_flight += 1
        ended = False
        try:
            sent_s = _now_s()
            deadline_s = sent_s + job.timeout_s + self._options.grace_s
            async with aclosing(self._events(job, deadline_s)) as events:
                async for event in events:
                    ended = isinstance(event, Done | Failed)
                    if isinstance(event, Failed):
                        self._remember(event, job.account)
                        raise event.as_error()
                    if isinstance(event, Done) and isinstance(job, WholeJob):
                        event = _with_wait(event, (_now_s() - sent_s) * 1e3)
                    yield event
                    if ended:
                        return
            raise self._lost()
        finally:
            self.in_flight -= 1
            if not ended:
                self._later(self._cancel(job.id))

    async def state(self) -> dict[str, str]:
        """`{"state": "ready" | "loading" | "down", "why": ...}`, within `health_timeout_s` at any rate."""
        if self.is_gone:
            self._last_state = {}
            return {"state": "down", "why": "Its process has gone; it is started anew by itself."}
        try:
            async with asyncio.timeout(self._options.health_timeout_s):
                answer = await self._api.state()
        except (*BROKEN, BentoMLException):  # too busy to answer: it is as it was
            return self._last_state or {"state": "loading", "why": "It is starting."}
        self._last_state = {"state": str(answer.get("state", "down")), "why": str(answer.get("why", ""))}
        return self._last_state

    async def resident(self) -> list[dict[str, Any]]:
        """The `name`, `size_bytes` (0 where it is not known) and `leaves_in_s` of the models in its memory.

        None while it loads or is gone. Raises `JobError` when it does not say.
        """
        if self.is_gone:
            return []
        try:
            async with asyncio.timeout(VOICES_S):
                return list((await self._api.state()).get("resident", ()))
        except (*BROKEN, BentoMLException):
            raise self._restarting() from None

    async def voices(self) -> list[dict[str, str]]:
        """The `name`, `model` and `language` of each voice of a speech runner. Raises `JobError`."""
        if self.is_gone:
            raise self._restarting()
        try:
            async with asyncio.timeout(VOICES_S):
                return await self._api.voices()
        except (*BROKEN, BentoMLException):
            raise self._restarting() from None

    @property
    def is_gone(self) -> bool:
        """Whether new jobs are refused because the runner's process has gone."""
        return self._watch.gone.is_set()

    async def close(self) -> None:
        """Ends what runs in the background."""
        tasks = list(self._background)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._watched is not None:
            await self._watched.close()
        if isinstance(self._api, RemoteRunner):
            await self._api.close()

    @property
    def _watch(self) -> Watch:
        if self._watched is None:  # made late: the service is built outside the loop that it runs in
            self._watched = Watch(self.name, self._api.watch, self._options.silence_s)
        return self._watched

    def _remember(self, failed: Failed, account: str) -> None:
        if failed.error is ErrorKind.OVERLOADED and failed.code == "queue_full":
            now_s = _now_s()
            self._full = {who: each for who, each in self._full.items() if each.until_s > now_s}
            self._full[account] = _Full(now_s + FULL_S, self.in_flight - 1, failed)

    def _refuse_as_before(self, account: str) -> None:
        """Raises `JobError` where the queue was full for this account, and nothing has ended since."""
        full = self._full.get(account)
        if full is not None and _now_s() < full.until_s and self.in_flight >= full.in_flight:
            raise full.failed.as_error()

    async def _admit(self) -> None:
        if self.in_flight >= self._options.max_in_flight:
            raise JobError(
                ErrorKind.OVERLOADED,
                f"Too many {self.name} requests wait already; try again later.",
                code="queue_full",
                retry_after_s=1,
            )
        if self.is_gone:
            raise self._restarting()
        try:
            async with asyncio.timeout(self._options.health_timeout_s):
                await self._watch.there.wait()
        except TimeoutError:
            raise self._restarting() from None

    async def _events(self, job: Job, deadline_s: float) -> AsyncGenerator[Event, None]:
        async with aclosing(self._chunks(job)) as chunks:
            lines = frame_lines(chunks)
            async with aclosing(lines):
                quiet_until_s = deadline_s
                try:
                    async with asyncio.timeout_at(deadline_s):
                        line = await self._first(lines)
                    while line is not None:
                        event = decode_event(line)
                        yield event
                        at_work = not isinstance(event, Queued)
                        quiet_until_s = _now_s() + self._options.stall_s if at_work else deadline_s
                        async with asyncio.timeout_at(min(deadline_s, quiet_until_s)):
                            line = await anext(lines, None)
                except BROKEN as error:
                    if isinstance(error, TimeoutError) and _now_s() >= deadline_s:
                        raise self._late(job) from None
                    if isinstance(error, TimeoutError) and _now_s() >= quiet_until_s:
                        raise self._stalled() from None
                    logger.warning("the %s runner's stream broke: %s", self.name, type(error).__name__)
                    raise self._restarting() from None
                except BentoMLException as error:
                    raise self._refused(error) from None
                except ValidationError:
                    logger.error("the %s runner sent an event that this version does not know", self.name)
                    raise self._lost() from None

    def _chunks(self, job: Job) -> AsyncGenerator[str, None]:
        return self._answered(job) if isinstance(job, WholeJob) else self._api.run(job=encode_job(job))

    async def _answered(self, job: WholeJob) -> AsyncGenerator[str, None]:
        """By BentoML's own batching, which takes lists, and gathers those of several callers into one."""
        for line in await self._api.answer(jobs=[encode_job(job)]):
            yield line

    async def _first(self, lines: AsyncGenerator[str, None]) -> str | None:
        """The first line, unless the runner goes: a connection that was not accepted yet stays silent."""
        first = asyncio.ensure_future(anext(lines, None))
        gone = asyncio.ensure_future(self._watch.gone.wait())
        try:
            await asyncio.wait((first, gone), return_when=asyncio.FIRST_COMPLETED)
            if not first.done():
                raise self._restarting()
            return first.result()
        finally:
            gone.cancel()
            first.cancel()
            await asyncio.gather(first, return_exceptions=True)

    async def _cancel(self, id: str) -> None:
        for delay_s in _CANCEL_RETRIES_S:
            await asyncio.sleep(delay_s)
            try:
                async with asyncio.timeout(2.0):
                    if await self._api.cancel(id=id):
                        return
            except (*BROKEN, BentoMLException):
                continue

    def _later(self, work: Coroutine[Any, Any, None]) -> None:
        """Runs on whatever happens to the caller: a cancelled request still cancels its job."""
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    def _refused(self, error: BentoMLException) -> JobError:
        logger.warning("the %s runner answered %d", self.name, error.error_code)
        if error.error_code == 429:
            message = f"The {self.name} runner is busy; try again later."
            return JobError(ErrorKind.OVERLOADED, message, code="queue_full", retry_after_s=1)
        if error.error_code >= 500:
            return self._restarting()
        return self._lost()

    def _restarting(self) -> JobError:
        return JobError(
            ErrorKind.UNAVAILABLE,
            f"The {self.name} runner is restarting; try again later.",
            code="runner_unavailable",
            retry_after_s=self._options.restart_retry_after_s,
        )

    def _lost(self) -> JobError:
        return JobError(ErrorKind.INTERNAL, f"The {self.name} runner broke off.", code="runner_broke_off")

    def _stalled(self) -> JobError:
        message = f"The request did not get on for {self._options.stall_s:g} seconds."
        return JobError(ErrorKind.TIMEOUT, message, code="stalled")

    def _late(self, job: Job) -> JobError:
        message = f"The request did not end within {job.timeout_s:g} seconds."
        return JobError(ErrorKind.TIMEOUT, message, code="deadline_exceeded")
