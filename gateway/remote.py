"""Runners on other machines: the same calls over HTTP, with a token, at every address that a name has.

BentoML's own client to a service at a URL sends no token and knows one address.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncGenerator, Mapping, Sequence
from http import HTTPStatus
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import aiohttp

LOOK_UP_S = 5.0
"""How often names are looked up: replicas come and go."""
CONNECT_S = 2.0
REFUSED = "It does not take this gateway's token: TRIPTYCH_RUNNER_TOKEN must be the same on both."


class RemoteRunner:
    """`gateway.links.RunnerApi` at one address. Raises `aiohttp.ClientError` or `TimeoutError`."""

    def __init__(self, url: str, token: str | None) -> None:
        self._url = url.rstrip("/")
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._session: aiohttp.ClientSession | None = None

    async def run(self, job: str) -> AsyncGenerator[str, None]:
        async for chunk in self._stream("run", {"job": job}):
            yield chunk

    async def watch(self) -> AsyncGenerator[str, None]:
        async for chunk in self._stream("watch", {}):
            yield chunk

    async def answer(self, jobs: list[str]) -> list[str]:
        return await self._call("answer", {"jobs": jobs})

    async def cancel(self, id: str) -> bool:
        return await self._call("cancel", {"id": id})

    async def state(self) -> dict[str, Any]:
        try:
            return await self._call("state", {})
        except aiohttp.ClientResponseError as error:
            if error.status != HTTPStatus.UNAUTHORIZED:
                raise
            return {"state": "down", "why": REFUSED}

    async def voices(self) -> list[dict[str, str]]:
        return await self._call("voices", {})

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    @property
    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:  # made late: on the loop that it is used on
            self._session = aiohttp.ClientSession(
                headers=self._headers,
                # As many as there are jobs; deadlines are the caller's.
                connector=aiohttp.TCPConnector(limit=0),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S),
            )
        return self._session

    async def _stream(self, name: str, body: dict[str, Any]) -> AsyncGenerator[str, None]:
        async with self._open.post(f"{self._url}/{name}", json=body) as answer:
            answer.raise_for_status()
            async for chunk in answer.content.iter_any():
                yield chunk.decode("ascii")

    async def _call(self, name: str, body: dict[str, Any]) -> Any:
        async with self._open.post(f"{self._url}/{name}", json=body) as answer:
            answer.raise_for_status()
            return await answer.json()


class Remotes:
    """The processes of one runner that is served elsewhere."""

    def __init__(self, urls: Sequence[str], token: str | None) -> None:
        """A name in a plain `http` URL stands for each of its addresses, as a headless service's does."""
        self._urls = [url.rstrip("/") for url in urls]
        self._token = token
        self._runners = {url: RemoteRunner(url, token) for url in self._urls}
        self._looking: asyncio.Task[None] | None = None

    def known(self) -> Mapping[str, RemoteRunner]:
        """By URL; call it on the loop that they are used on."""
        if self._looking is None:
            self._looking = asyncio.create_task(self._look())
        return self._runners

    async def close(self) -> None:
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.gather(self._looking, return_exceptions=True)

    async def _look(self) -> None:
        while True:
            found = await asyncio.gather(*(addresses(url) for url in self._urls))
            urls = [each for several in found for each in several]
            self._runners = {url: self._runners.get(url) or RemoteRunner(url, self._token) for url in urls}
            await asyncio.sleep(LOOK_UP_S)


async def addresses(url: str) -> list[str]:
    """The URL of each address where its name has several; itself where that is one, or cannot be told."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    try:
        ip_address(host)
    except ValueError:
        pass
    else:
        return [url]
    if parts.scheme != "http":  # a certificate is for the name
        return [url]
    try:
        found = await asyncio.get_running_loop().getaddrinfo(
            host, parts.port or 80, type=socket.SOCK_STREAM, family=socket.AF_UNSPEC
        )
    except OSError:
        return [url]
    hosts = sorted({str(info[4][0]) for info in found})
    if len(hosts) < 2 or host == "localhost":
        return [url]
    ports = f":{parts.port}" if parts.port else ""
    named = (f"[{each}]" if ":" in each else each for each in hosts)
    return [urlunsplit(parts._replace(netloc=f"{each}{ports}")) for each in named]
