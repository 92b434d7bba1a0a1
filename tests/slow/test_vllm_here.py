"""The thread that steps vLLM's engine in our process, over an engine that only counts."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from models.text.vllm_here import EngineHere

pytest.importorskip("vllm")
pytestmark = pytest.mark.slow


@dataclass
class Counting:
    """A request takes `prompt` steps; `fails` at that step of the engine."""

    fails: int = -1
    model_config: Any = None
    running: dict[str, int] = field(default_factory=dict)
    aborted: list[str] = field(default_factory=list)
    steps: int = 0
    stopped: bool = False
    threads: set[str] = field(default_factory=set)

    @property
    def engine_core(self) -> Any:
        return SimpleNamespace(shutdown=lambda: setattr(self, "stopped", True))

    def add_request(self, request_id: str, prompt: int, params: Any, lora_request: Any = None) -> None:
        self.threads.add(threading.current_thread().name)
        if prompt < 1:
            raise ValueError("no prompt")
        self.running[request_id] = prompt

    def abort_request(self, request_ids: list[str]) -> None:
        for each in request_ids:
            if self.running.pop(each, None) is not None:
                self.aborted.append(each)

    def has_unfinished_requests(self) -> bool:
        return bool(self.running)

    def step(self) -> list[Any]:
        self.threads.add(threading.current_thread().name)
        self.steps += 1
        if self.steps == self.fails:
            raise RuntimeError("out of order")
        self.running = {name: left - 1 for name, left in self.running.items()}
        told = [SimpleNamespace(request_id=name, finished=not left) for name, left in self.running.items()]
        self.running = {name: left for name, left in self.running.items() if left}
        return told

    def add_lora(self, lora: str) -> bool:
        if lora == "broken":
            raise ValueError(lora)
        return True


async def finishes(engine: EngineHere, name: str, steps: int) -> list[bool]:
    return [output.finished async for output in engine.generate(steps, None, request_id=name)]


async def test_requests_share_steps_on_one_thread() -> None:
    counting = Counting()
    engine = EngineHere(counting)
    ends = await asyncio.gather(*(finishes(engine, f"r{n}", n) for n in (1, 3, 5)))
    assert ends == [[True], [False] * 2 + [True], [False] * 4 + [True]]
    assert counting.threads == {"vllm-steps"}
    assert await engine.add_lora("fine")
    engine.shutdown()
    assert counting.stopped


async def test_what_the_engine_refuses_is_the_callers_alone() -> None:
    engine = EngineHere(Counting())
    with pytest.raises(ValueError, match="no prompt"):
        await finishes(engine, "bad", 0)
    with pytest.raises(ValueError, match="broken"):
        await engine.add_lora("broken")
    assert await finishes(engine, "good", 2) == [False, True]
    engine.shutdown()


async def test_a_reader_that_leaves_ends_its_request() -> None:
    counting = Counting()
    engine = EngineHere(counting)
    outputs = engine.generate(10**9, None, request_id="left")
    await anext(outputs)
    await outputs.aclose()
    assert await finishes(engine, "next", 1) == [True]
    assert counting.aborted == ["left"]
    engine.shutdown()


async def test_an_aborted_request_has_a_last_output() -> None:
    counting = Counting()
    engine = EngineHere(counting)
    reading = asyncio.create_task(finishes(engine, "long", 10**9))
    while "long" not in counting.running:
        await asyncio.sleep(0)
    await engine.abort("long")
    assert (await reading)[-1] is True
    assert counting.aborted == ["long"]
    engine.shutdown()


async def test_an_engine_that_fails_ends_all_and_takes_no_more() -> None:
    from vllm.exceptions import VLLMServerError  # pyright: ignore[reportMissingImports]

    engine = EngineHere(Counting(fails=3))
    ends = await asyncio.gather(*(finishes(engine, f"r{n}", 9) for n in range(2)), return_exceptions=True)
    assert [type(end) for end in ends] == [VLLMServerError] * 2
    assert engine.errored
    with pytest.raises(VLLMServerError):
        await finishes(engine, "late", 1)
    engine.shutdown()
