"""Whether a runner's process is there: one stream of it is held open, whose end is the process's end.

Nothing else tells. A killed runner's socket stays open in the supervisor, so a connection made to it is
neither refused nor answered; and a runner that is merely busy may be silent for a while too.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

import aiohttp
from bentoml.exceptions import BentoMLException

logger = logging.getLogger("triptych.gateway")

BROKEN = (aiohttp.ClientError, OSError, TimeoutError)
"""What a call to a runner raises when the way to it, or the runner, is gone."""

RETRY_S = 0.1
ANSWER_S = 60.0
"""How long a connection may wait to be answered: a runner that starts is not asked again and again."""


class Watch:
    """Of one runner. `there` is set while its process is; `gone` while it is not, once it has been there."""

    def __init__(self, name: str, beats: Callable[[], AsyncGenerator[str, None]], silence_s: float) -> None:
        """`beats` opens the stream; a runner across a network is gone when it is silent for `silence_s`."""
        self._name = name
        self._beats = beats
        self._silence_s = silence_s
        self.there = asyncio.Event()
        self.gone = asyncio.Event()
        self._task = asyncio.create_task(self._hold())

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _hold(self) -> None:
        while True:
            try:
                async with aclosing(self._beats()) as beats:
                    await self._listen(beats)
            except (*BROKEN, BentoMLException):
                pass
            if self.there.is_set():
                logger.warning("the %s runner is gone", self._name)
                self.there.clear()
                self.gone.set()
            await asyncio.sleep(RETRY_S)

    async def _listen(self, beats: AsyncGenerator[str, None]) -> None:
        patience_s = ANSWER_S
        while True:
            async with asyncio.timeout(patience_s):
                if await anext(beats, None) is None:
                    return
            self.gone.clear()
            self.there.set()
            patience_s = self._silence_s
