"""Offers requests to a server as callers would, and times each: open loop (Poisson) or closed (n clients)."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import aiohttp

LONGEST_S = 600.0


@dataclass(frozen=True, slots=True)
class Request:
    path: str
    body: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Answer:
    """What a unit of work is counted from."""

    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class Sample:
    """One request. Times are seconds since the load began; `due_s` is when it should have been sent.

    `units` is what its answer holds (pictures, tokens, seconds of sound), 0 for a failed one.
    """

    due_s: float
    first_byte_s: float
    end_s: float
    status: int
    units: float
    headers: Mapping[str, str]

    @property
    def latency_s(self) -> float:
        """From when it was due: a driver or a server that lags is not forgiven."""
        return self.end_s - self.due_s

    @property
    def first_byte_latency_s(self) -> float:
        return self.first_byte_s - self.due_s

    @property
    def good(self) -> bool:
        return self.status == 200


Units = Callable[[Answer], float]


def one_a_request(_: Answer) -> float:
    return 1.0


def poisson(count: int, rate_per_s: float, seed: int) -> list[float]:
    """When `count` independent callers come, in seconds from the beginning: the same for every server."""
    chance = random.Random(seed)
    return list(accumulate(chance.expovariate(rate_per_s) for _ in range(count)))


def offer(
    url: str, requests: Sequence[Request], due_s: Sequence[float], units: Units = one_a_request
) -> list[Sample]:
    """Open loop: sends each request at its time, however many are unanswered."""

    async def run() -> list[Sample]:
        async with _session() as session:
            began = time.monotonic()

            async def one(request: Request, due: float) -> Sample:
                await asyncio.sleep(began + due - time.monotonic())
                return await _ask(session, url, request, began, due, units)

            return await asyncio.gather(*map(one, requests, due_s))

    return asyncio.run(run())


def offer_in_turn(
    url: str, requests: Sequence[Request], clients: int, units: Units = one_a_request
) -> list[Sample]:
    """Closed loop: each of `clients` sends its next request when it has its answer."""

    async def run() -> list[Sample]:
        left = iter(requests)
        samples: list[Sample] = []
        async with _session() as session:
            began = time.monotonic()

            async def client() -> None:
                for request in left:
                    due = time.monotonic() - began
                    samples.append(await _ask(session, url, request, began, due, units))

            await asyncio.gather(*(client() for _ in range(clients)))
        return samples

    return asyncio.run(run())


def _session() -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=LONGEST_S)
    )


async def _ask(
    session: aiohttp.ClientSession, url: str, request: Request, began: float, due_s: float, units: Units
) -> Sample:
    first: float | None = None
    body = bytearray()
    status, headers = 0, dict[str, str]()
    try:
        async with session.post(url + request.path, json=request.body) as response:
            status, headers = response.status, dict(response.headers)
            async for piece in response.content.iter_any():
                first = first or time.monotonic()
                body += piece
    except (aiohttp.ClientError, TimeoutError):
        status = 0
    end = time.monotonic()
    return Sample(
        due_s=due_s,
        first_byte_s=(first or end) - began,
        end_s=end - began,
        status=status,
        units=units(Answer(headers, bytes(body))) if status == 200 else 0.0,
        headers=headers,
    )
