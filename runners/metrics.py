"""The engine's counters, by the names that dashboards rely on."""

from __future__ import annotations

import copy
import threading
import time

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram

from runners.machine import cards_memory

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_ROWS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64)


class EngineMetrics:
    """Made once a process and registry, after BentoML has said where the processes' metrics are gathered."""

    def __init__(self, modality: str, registry: CollectorRegistry = REGISTRY, *, replica: int = 0) -> None:
        self._modality = modality
        self._replica = str(replica + 1)
        self._rows = Counter(
            "triptych_rows_total",
            "Jobs that ended, by outcome: done, cancelled, late, failed, refused.",
            ["modality", "outcome"],
            registry=registry,
        )
        self._queue_seconds = Histogram(
            "triptych_queue_seconds",
            "Seconds from a job's arrival to its first step.",
            ["modality"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._work_seconds = Histogram(
            "triptych_work_seconds",
            "Seconds from the first step to the end of a job that is done.",
            ["modality"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._step_seconds = Histogram(
            "triptych_step_seconds",
            "Seconds one fused forward took.",
            ["modality", "lane"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._rows_per_step = Histogram(
            "triptych_rows_per_step",
            "Rows that one fused forward advanced.",
            ["modality", "lane"],
            buckets=_ROWS,
            registry=registry,
        )
        self._queue_depth = Gauge(
            "triptych_queue_depth",
            "Jobs that wait to be admitted.",
            ["modality", "replica"],
            multiprocess_mode="livemostrecent",
            registry=registry,
        )
        self._at_work = Gauge(
            "triptych_jobs_at_work",
            "Jobs in the runner, those that wait to be admitted included.",
            ["modality", "replica"],
            multiprocess_mode="livemostrecent",
            registry=registry,
        )
        self.queue_depth(0)
        self.at_work(0)

    def of(self, kind: str) -> EngineMetrics:
        """The same counters, of jobs that are told apart from the modality's own by their kind."""
        other = copy.copy(self)
        other._modality = kind
        return other

    def ended(self, outcome: str) -> None:
        self._rows.labels(self._modality, outcome).inc()

    def started(self, queue_s: float) -> None:
        self._queue_seconds.labels(self._modality).observe(queue_s)

    def worked(self, work_s: float) -> None:
        self._work_seconds.labels(self._modality).observe(work_s)

    def stepped(self, lane: str, seconds: float, rows: int) -> None:
        self._step_seconds.labels(self._modality, lane).observe(seconds)
        self._rows_per_step.labels(self._modality, lane).observe(rows)

    def queue_depth(self, jobs: int) -> None:
        self._queue_depth.labels(self._modality, self._replica).set(jobs)

    def at_work(self, jobs: int) -> None:
        self._at_work.labels(self._modality, self._replica).set(jobs)


GPU_MEMORY = "triptych_gpu_memory_bytes"
GPU_MEMORY_EVERY_S = 5.0


def watch_gpu_memory(registry: CollectorRegistry = REGISTRY) -> None:
    """Tells the memory of this process's cards, by the driver's account; nothing on a machine without any."""
    if not cards_memory():
        return
    gauge = Gauge(
        GPU_MEMORY,
        "Bytes of a card's memory: `used` by all processes, and `total`.",
        ["card", "of"],
        multiprocess_mode="livemostrecent",
        registry=registry,
    )

    def watch() -> None:
        while True:
            for card, used, total in cards_memory():
                gauge.labels(card, "used").set(used)
                gauge.labels(card, "total").set(total)
            time.sleep(GPU_MEMORY_EVERY_S)

    threading.Thread(target=watch, name="gpu-memory", daemon=True).start()
