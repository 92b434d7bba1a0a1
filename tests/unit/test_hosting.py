"""A runner's life: loading, ready or down, and what becomes of its jobs in each."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry

from jobs import Done, ErrorKind, Failed, Job, TextDelta, TextJob, decode_event, encode_job
from models.catalog import Entry, Modality
from models.loading import LoadError
from runners.engine import Engine
from runners.hosting import Backend, Runner
from runners.metrics import EngineMetrics
from runners.placement import Placement
from settings import Settings, settings
from tests.unit.fake_model import FakeModel


class CountingRunner(Runner):
    """A runner whose model counts; it loads when it is allowed to."""

    modality = Modality.TEXT

    def __init__(self, error: Exception | None = None) -> None:
        self.may_load = threading.Event()
        self.model = FakeModel(name="tiny-llama")
        self.error = error
        super().__init__()

    def build(self, entries: dict[str, Entry], placement: Placement, options: Settings) -> Backend:
        assert self.may_load.wait(30)
        if self.error is not None:
            raise self.error
        engine = Engine({"tiny-llama": self.model}, EngineMetrics("text", CollectorRegistry()))
        engine.start()
        return engine

    def warm_up_job(self, entries: dict[str, Entry]) -> Job:
        return job("warm-up")


def job(job_id: str, steps: int = 2) -> TextJob:
    return TextJob(id=job_id, timeout_s=30, seed=0, prompt="decode", max_tokens=steps, temperature=0)


async def ask(runner: Runner, line: str) -> list[Any]:
    lines = [line async for line in runner.run(line)]
    assert all(line.endswith("\n") and line.isascii() for line in lines)
    return [decode_event(line) for line in lines]


async def state_of(runner: Runner, wanted: str) -> dict[str, Any]:
    while (state := await runner.state())["state"] != wanted:
        await asyncio.sleep(0.01)
    return state


async def test_it_refuses_while_it_loads_and_then_answers() -> None:
    runner = CountingRunner()
    assert (await runner.state())["state"] == "loading"
    assert not runner.__is_ready__()
    (refused,) = await ask(runner, encode_job(job("early")))
    assert isinstance(refused, Failed)
    assert (refused.error, refused.retry_after_s) == (ErrorKind.UNAVAILABLE, 5)
    runner.may_load.set()
    assert (await state_of(runner, "ready"))["models"] == ["tiny-llama", "tiny-embed", "tiny-classify"]
    assert "warm-up" in runner.model.rows, "it said ready before it had answered"
    assert runner.__is_ready__()
    events = await ask(runner, encode_job(job("a")))
    assert isinstance(events[-1], Done)
    await asyncio.to_thread(runner.stop)


async def test_a_model_that_cannot_be_loaded_leaves_it_down_and_says_why() -> None:
    runner = CountingRunner(LoadError("There is no such folder."))
    runner.may_load.set()
    assert (await state_of(runner, "down"))["why"] == "There is no such folder."
    (refused,) = await ask(runner, encode_job(job("a")))
    assert isinstance(refused, Failed)
    assert refused.error is ErrorKind.UNAVAILABLE
    assert "folder" not in refused.message


async def test_it_comes_up_by_itself_once_its_files_are_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process, such as a cluster's Job, may still be fetching them."""
    catalog = tmp_path / "mine.yaml"
    entry = {"family": "text.decoder", "source": f"folder:{tmp_path}/late", "licence": "MIT"}
    catalog.write_text(
        yaml.safe_dump({"models": {"late": entry}, "profiles": {"default": {"text": ["late"]}}})
    )
    monkeypatch.setenv("TRIPTYCH_PROFILE", str(catalog))
    monkeypatch.setattr(CountingRunner, "look_again_s", 0.01)
    settings.cache_clear()
    try:
        runner = CountingRunner()
        runner.may_load.set()
        assert "late" in (await state_of(runner, "down"))["why"]
        (tmp_path / "late").mkdir()
        assert (await state_of(runner, "ready"))["models"] == ["late"]
        await asyncio.to_thread(runner.stop)
    finally:
        settings.cache_clear()


async def test_a_job_it_does_not_know_is_refused() -> None:
    runner = CountingRunner()
    runner.may_load.set()
    await state_of(runner, "ready")
    for line in ("not a job", '{"kind": "text", "version": 99}'):
        (refused,) = await ask(runner, line)
        assert isinstance(refused, Failed)
        assert (refused.error, refused.code) == (ErrorKind.UNAVAILABLE, "version_mismatch")
    await asyncio.to_thread(runner.stop)


async def test_a_reader_that_leaves_ends_its_job_and_so_does_cancel() -> None:
    runner = CountingRunner()
    runner.model.step_s = 0.005
    runner.may_load.set()
    await state_of(runner, "ready")
    lines = runner.run(encode_job(job("left", steps=10_000)))
    while not isinstance(decode_event(await anext(lines)), TextDelta):
        pass
    await lines.aclose()
    reader = asyncio.create_task(ask(runner, encode_job(job("cancelled", steps=10_000))))
    while not await runner.cancel("cancelled"):
        await asyncio.sleep(0.01)
    assert (await reader)[-1].error is ErrorKind.CANCELLED
    while runner.model.rows["left"].released != 1:
        await asyncio.sleep(0.01)
    assert not await runner.cancel("nobody")
    await asyncio.to_thread(runner.stop)
