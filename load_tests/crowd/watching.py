"""What the service says of itself while a crowd is there: its counters, and its processes' memory."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

import httpx
import psutil
from prometheus_client.parser import text_string_to_metric_families

MODALITIES = ("text", "image", "speech", "embed")
EVERY_S = 1.0


@dataclass(frozen=True, slots=True)
class Look:
    """`counters`: by metric and modality, summed over all else. `memory_mib`: of all processes."""

    at: float
    counters: Mapping[tuple[str, str], float]
    memory_mib: float | None


def look(client: httpx.Client, processes: Sequence[psutil.Process]) -> Look:
    counters: dict[tuple[str, str], float] = {}
    for family in text_string_to_metric_families(client.get("/metrics").raise_for_status().text):
        for sample in family.samples:
            if (modality := sample.labels.get("modality")) and "le" not in sample.labels:
                key = (sample.name, modality)
                counters[key] = counters.get(key, 0.0) + sample.value
    memory = 0
    for process in processes:
        with suppress(psutil.Error):
            memory += process.memory_info().rss
    return Look(time.time(), counters, memory / 2**20 if processes else None)


class Watcher:
    """Looks every second, on a thread of its own, until it is left."""

    def __init__(self, client: httpx.Client, processes: Sequence[psutil.Process]) -> None:
        self.looks: list[Look] = []
        self._client = client
        self._processes = processes
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Watcher:
        self.looks.append(look(self._client, self._processes))
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ends.set()
        self._thread.join()
        self.looks.append(look(self._client, self._processes))

    def _run(self) -> None:
        while not self._ends.wait(EVERY_S):
            with suppress(httpx.HTTPError):  # too busy to tell; the next look may
                self.looks.append(look(self._client, self._processes))


def between(looks: Sequence[Look], began: float, ended: float, modality: str) -> dict[str, float]:
    """Mean ms in the queue and at work, and mean rows of a step, of one modality's jobs in that time."""
    before = max((each for each in looks if each.at <= began), key=lambda each: each.at, default=looks[0])
    after = min((each for each in looks if each.at >= ended), key=lambda each: each.at, default=looks[-1])

    def mean(metric: str, scale: float) -> float | None:
        names = [(f"triptych_{metric}_{part}", modality) for part in ("sum", "count")]
        total, count = (after.counters.get(name, 0.0) - before.counters.get(name, 0.0) for name in names)
        return round(total / count * scale, 3) if count else None

    told = {
        "queue_ms": mean("queue_seconds", 1e3),
        "work_ms": mean("work_seconds", 1e3),
        "rows_per_step": mean("rows_per_step", 1),
    }
    return {key: value for key, value in told.items() if value is not None}
