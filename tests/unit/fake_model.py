"""A real model of the engine's protocol that only counts, so that the engine can be watched."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

from jobs import ErrorKind, Event, JobError, TextDelta, TextJob, TextResult
from models.protocol import Lane, OutOfMemoryError


@dataclass(eq=False)
class FakeRow:
    job: TextJob
    steps: int = 0
    reserved: bool = False
    released: int = 0


@dataclass
class FakeModel:
    """A row takes `max_tokens` steps in the lane that its prompt's first word names; `poison` raises there,
    `mute` on purpose.

    `slots` rows fit in memory, `memory` rows in one step. A step takes `step_s` seconds;
    with a `gate` it waits for one permit.
    """

    name: str = "fake"
    slots: int = 8
    memory: int = 100
    step_s: float = 0.0
    gate: threading.Semaphore | None = None
    log: list[tuple[str, list[str]]] = field(default_factory=list)
    rows: dict[str, FakeRow] = field(default_factory=dict)

    def prepare(self, job: TextJob) -> FakeRow:
        if job.prompt == "refuse":
            raise JobError(ErrorKind.INVALID, "no", param="prompt")
        row = self.rows[job.id] = FakeRow(job)
        return row

    def reserve(self, row: FakeRow) -> bool:
        fits = self.slots >= (2 if "large" in (row.job.prompt or "") else 1)
        if fits:
            self.slots -= 1
            row.reserved = True
        return fits

    def lane(self, row: FakeRow) -> Lane | None:
        stage = (row.job.prompt or "").split()[0]
        return Lane(self.name, stage) if row.steps < (row.job.max_tokens or 0) else None

    def cost(self, row: FakeRow) -> float:
        return 1.0

    def budget(self, lane: Lane) -> float:
        return 8.0

    def step(self, lane: Lane, rows: Sequence[FakeRow]) -> list[list[Event]]:
        if self.gate is not None:
            assert self.gate.acquire(timeout=30)
        threading.Event().wait(self.step_s)
        self.log.append((lane.stage, [row.job.id for row in rows]))
        if any("poison" in (row.job.prompt or "") for row in rows):
            raise ValueError("a poisoned row")
        if any("mute" in (row.job.prompt or "") for row in rows):
            raise JobError(ErrorKind.INTERNAL, "a row without a sound")
        if len(rows) > self.memory:
            raise OutOfMemoryError
        for row in rows:
            row.steps += 1
        return [[TextDelta(text=f"{row.job.id}:{row.steps}")] for row in rows]

    def finish(self, row: FakeRow) -> TextResult:
        return TextResult(
            model=self.name,
            seed=row.job.seed,
            text=row.job.id,
            finish_reason="stop",
            prompt_tokens=1,
            completion_tokens=row.steps,
        )

    def release(self, row: FakeRow) -> None:
        row.released += 1
        self.slots += row.reserved

    def warm_up(self) -> None:
        """Nothing to warm."""
