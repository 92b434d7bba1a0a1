"""Stateless jobs in one batch: each has its own end, and a bad one is nobody else's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from prometheus_client import CollectorRegistry

from jobs import (
    ClassifyJob,
    Done,
    EmbedJob,
    EmbedResult,
    ErrorKind,
    Failed,
    JobError,
    TextJob,
    decode_event,
    encode_job,
)
from models.protocol import OutOfMemoryError
from runners.metrics import EngineMetrics
from runners.residency import Residency
from runners.whole import WholeCalls


@dataclass
class Lengths:
    """A vector is a text's length. `refuse` is a bad request, `poison` breaks the call it is in; `memory`
    rows fit into one."""

    name: str = "lengths"
    memory: int = 100
    calls: list[int] = field(default_factory=list[int])

    def prepare(self, job: EmbedJob) -> EmbedJob:
        if "refuse" in job.texts:
            raise JobError(ErrorKind.INVALID, "no", param="texts")
        return job

    def answer(self, rows: Sequence[EmbedJob]) -> list[EmbedResult]:
        self.calls.append(len(rows))
        if len(rows) > self.memory:
            raise OutOfMemoryError("too many")
        if any("poison" in row.texts for row in rows):
            raise ArithmeticError("poison")
        return [
            EmbedResult(
                model=self.name,
                vectors=tuple((float(len(text)),) for text in row.texts),
                tokens=tuple(len(text) for text in row.texts),
            )
            for row in rows
        ]

    def warm_up(self) -> None: ...


def ask(model: Lengths, *jobs: Any, registry: CollectorRegistry | None = None) -> list[Any]:
    metrics = EngineMetrics("text", registry or CollectorRegistry())
    calls = WholeCalls(Residency.of({model.name: model, "other": model}), {model.name: "embed"}, metrics)
    lines = calls.answered([each if isinstance(each, str) else encode_job(each) for each in jobs])
    assert all(line.endswith("\n") for line in lines)
    return [decode_event(line) for line in lines]


def job(*texts: str, **more: Any) -> EmbedJob:
    return EmbedJob(id="-".join(texts), timeout_s=10, texts=texts, **more)


def lengths(end: Any) -> list[float]:
    assert isinstance(end, Done)
    assert isinstance(end.result, EmbedResult)
    assert end.total_ms >= end.queue_ms >= 0
    return [vector[0] for vector in end.result.vectors]


def test_jobs_are_answered_in_one_call() -> None:
    model = Lengths()
    ends = ask(model, job("a", "bb"), job("ccc"))
    assert [lengths(end) for end in ends] == [[1, 2], [3]]
    assert model.calls == [2]


def test_a_bad_one_fails_alone_wherever_it_fails() -> None:
    ends = ask(
        Lengths(),
        job("a"),
        job("poison"),
        "nonsense",
        job("refuse"),
        job("bb", model="nope"),
        TextJob(id="t", timeout_s=1, seed=0, prompt="a", max_tokens=1, temperature=0),
        ClassifyJob(id="c", timeout_s=1, texts=("a",)),
        job("ccc"),
    )
    assert (lengths(ends[0]), lengths(ends[-1])) == ([1], [3])
    failures = [end.error for end in ends[1:-1] if isinstance(end, Failed)]
    assert failures == [
        ErrorKind.INTERNAL,
        ErrorKind.UNAVAILABLE,
        ErrorKind.INVALID,
        ErrorKind.NOT_FOUND,
        ErrorKind.UNAVAILABLE,
        ErrorKind.NOT_FOUND,
    ]
    assert ends[3].param == "texts"
    assert "There are: lengths." in ends[4].message
    assert "update both" in ends[2].message


def test_too_many_for_the_memory_are_answered_in_parts() -> None:
    model = Lengths(memory=2)
    ends = ask(model, *(job("a" * n) for n in range(1, 8)))
    assert [lengths(end) for end in ends] == [[n] for n in range(1, 8)]
    assert max(n for n in model.calls if n <= 2) == 2
    (alone,) = ask(Lengths(memory=0), job("a"))
    assert isinstance(alone, Failed)
    assert alone.error is ErrorKind.UNAVAILABLE


def test_they_are_counted_by_their_kind() -> None:
    registry = CollectorRegistry()
    ask(Lengths(), job("a"), job("poison"), registry=registry)

    def count(name: str, **labels: str) -> float | None:
        return registry.get_sample_value(name, {"modality": "embed", **labels})

    assert count("triptych_rows_total", outcome="done") == 1
    assert count("triptych_rows_total", outcome="failed") == 1
    assert count("triptych_work_seconds_count") == 1
    assert count("triptych_rows_per_step_sum", lane="embed") == 1
