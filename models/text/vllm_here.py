"""vLLM's engine in this process, stepped by a thread of ours: what a CPU with few cores needs.

`AsyncLLM` steps in a process of its own, which waits for ours by spinning. Where that takes a core from the
gateway, tokens come late and in clumps.
"""

# vLLM is not part of the environment that types are checked in.
# pyright: reportMissingImports=false

from __future__ import annotations

import asyncio
import logging
import queue
import threading
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Any

log = logging.getLogger("triptych.runner")


@dataclass(frozen=True, slots=True)
class Aborted:
    """The last output of a request that was aborted."""

    finished: bool = True


class EngineHere:
    """The part of `AsyncLLM` that `VllmText` uses, over an `LLMEngine` that is not in another process.

    Its coroutines belong to one event loop; only the thread that steps touches the engine.
    """

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self.model_config = engine.model_config
        self.errored = False
        self._closed = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._inbox: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]]] = queue.SimpleQueue()
        self._readers: dict[str, asyncio.Queue[Any]] = {}
        self._thread = threading.Thread(target=self._run, name="vllm-steps", daemon=True)
        self._thread.start()

    async def generate(
        self, prompt: Any, params: Any, *, request_id: str, lora_request: Any = None
    ) -> AsyncGenerator[Any]:
        """The outputs of a request, the last one `finished`. A reader that leaves aborts it."""
        self._loop = asyncio.get_running_loop()
        outputs: asyncio.Queue[Any] = asyncio.Queue()
        self._readers[request_id] = outputs
        finished = False
        try:
            await self._do(
                partial(self._engine.add_request, request_id, prompt, params, lora_request=lora_request)
            )
            while not finished:
                output = await outputs.get()
                if isinstance(output, Exception):
                    raise output
                finished = output.finished
                yield output
        finally:
            del self._readers[request_id]
            if not finished:
                self._put(partial(self._engine.abort_request, [request_id]))

    async def abort(self, request_id: str) -> None:
        await self._do(partial(self._engine.abort_request, [request_id]))
        if (reader := self._readers.get(request_id)) is not None:
            reader.put_nowait(Aborted())

    async def add_lora(self, lora: Any) -> bool:
        return await self._do(partial(self._engine.add_lora, lora))

    def shutdown(self) -> None:
        """Ends the thread, between two steps, and what the engine holds."""
        self._put(self._close)
        self._thread.join()

    async def _do(self, work: Callable[[], Any]) -> Any:
        """Runs `work` on the thread that steps, between two steps."""
        return await asyncio.wrap_future(self._put(work))

    def _put(self, work: Callable[[], Any]) -> Future[Any]:
        done: Future[Any] = Future()
        self._inbox.put((done, work))
        if self.errored or self._closed:
            self._refuse()
        return done

    def _refuse(self) -> None:
        """Nobody steps any more: those who wait are told."""
        while True:
            try:
                done, _ = self._inbox.get_nowait()
            except queue.Empty:
                return
            if done.set_running_or_notify_cancel():
                done.set_exception(_has_ended())

    # --- the thread that steps ------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while not self._closed:
                self._read_inbox(wait=not self._engine.has_unfinished_requests())
                if not self._closed and self._engine.has_unfinished_requests():
                    self._tell(self._engine.step())
        except Exception:
            log.critical("vLLM's engine failed", exc_info=True)
            self.errored = True
            self._refuse()
            if self._loop is not None:
                self._loop.call_soon_threadsafe(self._fail, _has_ended())

    def _read_inbox(self, *, wait: bool) -> None:
        try:
            if wait:
                _resolve(*self._inbox.get())
            while True:
                _resolve(*self._inbox.get_nowait())
        except queue.Empty:
            return

    def _tell(self, outputs: list[Any]) -> None:
        """All of a step's at once: to wake another thread costs more than what there is to say."""
        if outputs and self._loop is not None:
            self._loop.call_soon_threadsafe(self._deliver, outputs)

    def _close(self) -> None:
        self._closed = True
        self._engine.engine_core.shutdown()

    # --- the event loop -------------------------------------------------------------------------------------

    def _deliver(self, outputs: list[Any]) -> None:
        for output in outputs:
            if (reader := self._readers.get(output.request_id)) is not None:
                reader.put_nowait(output)

    def _fail(self, why: Exception) -> None:
        for reader in self._readers.values():
            reader.put_nowait(why)


def _resolve(done: Future[Any], work: Callable[[], Any]) -> None:
    if not done.set_running_or_notify_cancel():
        return
    try:
        done.set_result(work())
    except Exception as error:  # noqa: BLE001 - for who asked
        done.set_exception(error)


def _has_ended() -> Exception:
    from vllm.exceptions import VLLMServerError

    return VLLMServerError("vLLM's engine has ended.")
